"""Policies: networks, Stable-Baselines3 policies, checkpoints and baselines."""
