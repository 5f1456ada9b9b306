"""Data that need no download: synthetic text, Python's own sources, chats about its functions."""
