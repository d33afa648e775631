"""The order of the stages of a training, resuming, and the best checkpoint of each stage."""
