"""SNIPER's training chips, without torch."""
