"""What the study compares with: they read pixels, and a file is an entry."""
