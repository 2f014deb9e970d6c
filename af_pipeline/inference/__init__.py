"""Detection in this process, without Ray: what the Python API hands out."""
