"""Where the images of a run come from, one module a kind."""
