"""Torch detectors with a FocusPixel head: backbones, heads, losses, checkpoints."""
