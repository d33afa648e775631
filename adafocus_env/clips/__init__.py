"""The specification and the crops of clips, the store of decoded clips, and the stream of resampled clips."""
