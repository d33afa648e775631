"""From files to frames: data sets, list files, splits, readers, decoding in processes that can be killed."""
