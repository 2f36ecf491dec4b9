"""Releases: storage, index, gates and comparison."""
