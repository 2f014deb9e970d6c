"""Detectors of other makers: one file a kind."""
