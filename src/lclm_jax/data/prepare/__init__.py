"""Raw files to prepared shards."""
