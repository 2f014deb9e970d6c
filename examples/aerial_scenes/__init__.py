"""Drawn aerial scenes with labelled vehicles: data for the demo, for tests and to train on."""
