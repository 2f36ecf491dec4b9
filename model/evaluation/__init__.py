"""Ranking metrics, and the recall of a release on held-out events."""
