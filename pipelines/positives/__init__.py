"""Step build_positives: interactions to training positives."""
