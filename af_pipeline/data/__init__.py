"""Where images and annotations are, and how they are read."""
