"""Run directories, loggers, progress displays, plots and reports."""
