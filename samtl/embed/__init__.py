"""The encoder pass: from a dataset's images to a store of embeddings."""
