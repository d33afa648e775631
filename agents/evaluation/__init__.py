"""Evaluation, inference, metrics and budgets."""
