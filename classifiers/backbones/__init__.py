"""Backbones, which map images to feature maps and pooled vectors."""
