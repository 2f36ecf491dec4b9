"""Largest absolute values accepted in tables and requests.

`LARGEST` limits features: its square is finite in float32, and every 64-bit integer is below it. `LARGEST_WEIGHT` limits
weights and rewards, which scale gradients: it leaves room for sums of squares.
"""

LARGEST = 1e19
LARGEST_WEIGHT = 1e12
