"""Measured speeds, each a ratio against a plain loop; `python -m benchmarks` prints them all."""
