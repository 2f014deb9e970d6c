"""Data sources: real sets, tiling and synthetic scenes."""
