"""The choice of focus settings, and their guarantee."""
