"""Data sets, list files, splits, readers, and decoding of videos in processes that can be killed."""
