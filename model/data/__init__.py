"""Training data: the Petastorm reader, batches, the item catalogue and item versions."""
