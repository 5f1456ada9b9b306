"""From raw text to batches: corpus, prepared shards, mixtures, packing and loading."""
