"""Indices that mean the same in every vocabulary."""

PADDING = 0  # No value. Its embedding row stays zero.
DEFAULT = 1  # A value that the vocabulary does not contain.
FIRST = 2  # The first index of a real value.
