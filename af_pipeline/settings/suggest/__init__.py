"""Which scales, ranges and anchors a data set asks for."""
