"""Collectives, and embedding tables that several processes share."""
