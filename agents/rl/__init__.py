"""Stage 2: the table of algorithms, their trainer, buffers and training state."""
