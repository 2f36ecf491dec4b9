"""Kinds of negatives, as column `negative_kinds` of samples stores them."""

NONE, UNIFORM, POPULARITY, COARSE, FINE = range(5)
KINDS = {NONE: "none", UNIFORM: "uniform", POPULARITY: "popularity", COARSE: "coarse", FINE: "fine"}
