"""Command lines, one a module: parse, prepare, run, exit code."""
