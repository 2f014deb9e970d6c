"""What can be set; loads without torch and Ray."""
