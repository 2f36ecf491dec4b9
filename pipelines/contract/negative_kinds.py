"""Kinds of negatives and their codes in the column `negative_kinds` of samples."""

NONE, UNIFORM, POPULARITY, COARSE, FINE = range(5)
KINDS = {NONE: "none", UNIFORM: "uniform", POPULARITY: "popularity", COARSE: "coarse", FINE: "fine"}
