"""Measurements of this machine, each beside what one would otherwise do, as ratios within one run."""
