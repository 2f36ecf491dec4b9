"""Candidates, logQ correction, masks and losses."""
