"""Presets of the studies in `benchmarks`."""
