"""The recency prior of a release: items with many recent positives get a bonus, folded into one more component of vectors.

Score of an item: <u, v> + beta tau log(1 + count / unseen_count), where count is the item's recent (decayed) number of
positives. Up to the factor tau and a constant, this is <u, v> / tau + beta log p_recent with
p_recent = (count + unseen_count) / (the sum of both over all items): the constant is chosen so that an item without recent
positives gets no bonus. It changes no ranking, and a vector changes only if the count of its own item does.

User vectors become [u, c], item vectors [v, bonus / c], so any index that compares by inner product serves the prior.
c is SCALE. It changes no score, but how well approximate indices work.

Shapes: n items, d vector length.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
# In units of cosine, as the other components are: clusters, graphs and quantisers of an index then weigh the prior as the
# score does (docs/index.md).
SCALE = 1.0


def bonus_of(
    counts_n: npt.NDArray[np.float64], beta: float, temperature: float, unseen_count: float
) -> npt.NDArray[np.float64]:
    """[n] what the prior adds to the inner product of each item: beta tau log(1 + count / unseen_count)."""
    return beta * temperature * np.log1p(counts_n / unseen_count)


def with_bonus(vectors_nd: Floats, bonus_n: npt.NDArray[np.float64], scale: float) -> Floats:
    """[n, d + 1] item vectors of a release with a prior."""
    return np.column_stack([vectors_nd, (bonus_n / scale).astype(np.float32)])


def with_scale(vectors_nd: Floats, scale: float | None) -> Floats:
    """[n, d + 1] user vectors of a release with a prior; unchanged without one (None)."""
    if scale is None:
        return vectors_nd
    return np.column_stack([vectors_nd, np.full(len(vectors_nd), scale, np.float32)])
