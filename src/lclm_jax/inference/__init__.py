"""Generation from prompts with compressed context."""
