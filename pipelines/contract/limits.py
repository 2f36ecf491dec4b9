"""Limits of every number that is read, from tables and from requests.

The square of a feature must be finite in float32; every 64-bit integer is below the limit. Factors of gradients (weights
and rewards) must leave room for sums of squares.
"""

LARGEST = 1e19
LARGEST_WEIGHT = 1e12
