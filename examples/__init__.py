"""Examples that stand beside the package."""
