"""How networks are built and trained: layers and losses, the training loop, and models that use both."""
