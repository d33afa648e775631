"""Backbones: image → (feature map, pooled vector)."""
