"""Faster and smaller computations of the same networks."""
