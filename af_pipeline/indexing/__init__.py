"""The thin Ray shell: training on Ray Train, the index graph on Ray Data."""
