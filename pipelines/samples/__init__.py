"""Step build_negatives: positives to model-ready samples."""
