"""Baselines, which the study compares heads with: they read pixels; each is a file."""
