"""Clips: their specification, their crops, the store of decoded clips, and the stream of resampled clips."""
