"""The index graph on Ray Data: a thin shell round the cascade."""
