"""Reports of benchmark suites."""
