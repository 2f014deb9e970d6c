"""Drawn aerial scenes."""
