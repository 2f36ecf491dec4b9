"""Serves a release: load it, check it, embed requests and search the index."""
