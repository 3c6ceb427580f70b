"""Scores of classifications and segmentations, with bootstrap intervals."""
