"""Stages 0, 1 and 3: the epoch loop, batches, checkpoints and distributed training."""
