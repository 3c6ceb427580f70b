"""Weights of networks: official files, and checkpoints as people have them."""
