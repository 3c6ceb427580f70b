"""One fit: a head or a baseline on one split, its scores, its run folder, and predictions with it."""
