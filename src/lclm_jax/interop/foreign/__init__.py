"""What the files of others say: every key is understood, known to be harmless, or refused by name."""
