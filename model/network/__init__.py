"""The user tower, the item tower and their embeddings."""
