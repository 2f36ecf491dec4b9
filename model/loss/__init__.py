"""Candidates, logQ correction, masks, losses and self-supervision."""
