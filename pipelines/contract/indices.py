"""Reserved indices, the same in every vocabulary."""

PADDING = 0  # No value. Its embedding row is always zero.
DEFAULT = 1  # A value that is not in the vocabulary.
FIRST = 2  # The first index of a vocabulary value.
