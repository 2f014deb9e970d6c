"""The algorithm: numpy and OpenCV alone."""
