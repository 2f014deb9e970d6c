"""AutoFocus object detection over large image collections: coarse look, FocusChips, Parquet."""
