"""Clips: their specification, crops, the store of decoded clips and the stream of resampled clips."""
