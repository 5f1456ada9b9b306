"""Row index and batches."""
