"""Run the stages of a training in order, resume interrupted stages, and load the best checkpoint of each stage."""
