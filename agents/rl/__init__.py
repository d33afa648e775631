"""Stage 2: the table of algorithms, the trainer, buffers and training state."""
