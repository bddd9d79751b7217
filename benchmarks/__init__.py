"""Measures the mixture against everything that a user would pick instead: see `benchmarks/README.md`."""
