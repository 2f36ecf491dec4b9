"""The two towers and their embeddings."""
