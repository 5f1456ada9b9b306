"""Chats as text to train on: loss markers, replies, strings that would become special tokens."""
