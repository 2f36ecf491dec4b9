"""Features of users and items: vocabularies, indices and item versions."""
