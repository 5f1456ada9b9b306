"""Metrics, events, log lines, progress and trackers."""
