"""Benchmark tasks: generators and loaders of published files."""
