"""A release: loading, checking, embedding and searching."""
