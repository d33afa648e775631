"""Which stage runs when, resuming, and the best checkpoint of each."""
