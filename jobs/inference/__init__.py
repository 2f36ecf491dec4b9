"""Towers on Spark executors: vectors, top items and scores."""
