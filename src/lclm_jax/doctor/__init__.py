"""What keeps a job from running well, found before it runs: versions, devices, links, storage, clocks, limits."""
