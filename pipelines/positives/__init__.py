"""The step build_positives: interactions become training positives, vocabularies, user histories and item tables."""
