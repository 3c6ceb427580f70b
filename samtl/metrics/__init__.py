"""Scores of each task, with 95 % intervals."""
