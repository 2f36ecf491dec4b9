"""Retrieval quality beside what people would use instead: docs/quality.md."""
