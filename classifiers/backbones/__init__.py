"""Backbones. A backbone maps images to feature maps and pooled vectors."""
