"""Ranking metrics and the recall of a release."""
