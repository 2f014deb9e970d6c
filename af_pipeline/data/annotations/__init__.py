"""Ground truth, read from several formats."""
