"""Pictures and pages that show what a run looked at and found."""
