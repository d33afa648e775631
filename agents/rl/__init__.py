"""Stage 2: the table of algorithms, the trainer and its callback, buffers and training state."""
