"""The values that the studies of `benchmarks` start from."""
