"""What an index run leaves behind."""
