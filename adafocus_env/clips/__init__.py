"""From frames to clips: what a clip is, crops, the store of decoded clips and the stream of resampled ones."""
