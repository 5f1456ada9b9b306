"""What the rows of chats hold: JSON values, messages, keys that no template prints."""
