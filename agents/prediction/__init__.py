"""Predictions of a trained run for any video: results, their files, and pictures of them."""
