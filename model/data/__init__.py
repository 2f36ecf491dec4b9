"""Batches: the Petastorm reader, the item catalogue and item versions."""
