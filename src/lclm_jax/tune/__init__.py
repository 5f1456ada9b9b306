"""``lclm tune``: an imported or exported LCLM, and rows of a task, to a tuned export."""
