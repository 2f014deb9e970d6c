"""Detections in the formats of others."""
