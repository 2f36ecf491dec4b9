"""Kinds of negatives and their codes in the column `negative_kinds` of samples."""

NONE, UNIFORM, POPULARITY, COARSE, FINE, MINED = range(6)
KINDS = {NONE: "none", UNIFORM: "uniform", POPULARITY: "popularity", COARSE: "coarse", FINE: "fine", MINED: "mined"}
QUOTAS = tuple(name for kind, name in KINDS.items() if kind != NONE)  # keys of `negatives` in the config, in slot order
EASY = (UNIFORM, POPULARITY)  # drawn from the catalogue with a known probability, shared by the batch
HARD = (COARSE, FINE, MINED)  # chosen for a user, without a probability
