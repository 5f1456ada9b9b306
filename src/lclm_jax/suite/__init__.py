"""Benchmarks of long context: tasks, systems that answer them, scores, times, memory."""
