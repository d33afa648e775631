"""A run: its directory, loggers, progress, plots and report."""
