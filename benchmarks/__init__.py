"""Measurements of this machine, each against an alternative, as ratios within one run."""
