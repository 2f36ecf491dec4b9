"""Fits the item-item part of vectors: EASE in closed form, in its best approximation of rank r.

EASE (Steck, WWW 2019) is the item-item matrix B with a diagonal of 0 that minimises |X - X B|^2 + penalty |B|^2, where X is
the binary matrix of users and items: B[j, i] = -P[j, i] / P[i, i] with P = (X^T X + penalty)^-1. Of all matrices of rank r,
B V V^T has the scores nearest to X B, where V are the r eigenvectors of (X B)^T X B with the largest eigenvalues (Eckart and
Young, 1936; as in reduced-rank regression: Izenman, 1975). So F = B V and E = V. With a popularity exponent g, B[j, i] is
first divided by (n_i / mean n)^g, where n_i is the number of users of item i.

Shapes: U users, n fitted items, p pairs, V item indices, r rank.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.linalg import lapack
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from model.item_item_config import ItemItemConfig
from model.network.item_item import ItemItemTables
from pipelines.contract.errors import UsageError

Floats = npt.NDArray[np.float64]
DENSE = 1000  # Up to this many items, all eigenvectors are computed: that is fast, and never fails.
BLOCK = 1 << 22  # Pairs of users and items that are multiplied at once.


class KnownItems(NamedTuple):
    """The items of users, each at most once: user u has items_p[starts_U1[u] : starts_U1[u + 1]]."""

    starts_U1: npt.NDArray[np.int64]
    items_p: npt.NDArray[np.int32]


class ItemItemFit(NamedTuple):
    """The tables, and what they were fitted on."""

    tables: ItemItemTables
    users: int
    items: int
    pairs: int


def fit_item_item(known: KnownItems, live_V: npt.NDArray[np.bool_], rank: int, config: ItemItemConfig) -> ItemItemFit:
    """Fit on the known items of users. `live_V`: the items that can be recommended.

    At most `config.items` items are fitted, because the time grows with the cube of their number: live ones first, of them
    those with the most users. The others say something of live items as part of a history, and get no score themselves. If
    fewer than `rank` items can be fitted, the rest of the columns are 0, so that vectors of all nights have one length.

    Raises UsageError if the penalty is too small for an inverse.
    """
    inside = known.items_p < len(live_V)
    counts_V = np.bincount(known.items_p if inside.all() else known.items_p[inside], minlength=len(live_V))
    order = np.lexsort((-counts_V, ~live_V))
    fitted = np.sort(order[counts_V[order] > 0][: config.items])
    of_history, of_items = (np.zeros((len(fitted) + 1, rank), np.float32) for _ in range(2))
    place_V = np.zeros(len(live_V), np.int32)
    place_V[fitted] = np.arange(1, len(fitted) + 1)
    pairs, users = int(counts_V[fitted].sum()), 0
    if len(fitted):
        together_nn, users = _together(known, place_V, len(fitted))
    if len(fitted) > 2:
        b_nn = ease(together_nn, config.penalty * pairs / len(fitted))
        b_nn *= live_V[fitted] * (pairs / len(fitted) / together_nn.diagonal()) ** config.popularity_exponent
        v_nr = _largest_eigenvectors(together_nn, b_nn, min(rank, len(fitted) - 1))
        of_history[1:, : v_nr.shape[1]] = b_nn @ v_nr
        of_items[1:, : v_nr.shape[1]] = v_nr
    tables = ItemItemTables(*(torch.from_numpy(table) for table in (place_V, of_history, of_items)))
    return ItemItemFit(tables, users, len(fitted), pairs)


def _together(known: KnownItems, place_V: npt.NDArray[np.int32], fitted: int) -> tuple[Floats, int]:
    """(X^T X, the number of users with a fitted item). Adds up blocks of users, which bounds the memory."""
    together_nn, users, first = np.zeros((fitted, fitted)), 0, 0
    while first < len(known.starts_U1) - 1:
        start = known.starts_U1[first]
        last = max(first + 1, int(np.searchsorted(known.starts_U1, start + BLOCK, side="right")) - 1)
        items_p = known.items_p[start : known.starts_U1[last]]
        columns_p = np.where(items_p < len(place_V), place_V[np.minimum(items_p, len(place_V) - 1)], 0) - 1
        ends = np.concatenate([[0], np.cumsum(columns_p >= 0)])[known.starts_U1[first : last + 1] - start]
        columns_p = columns_p[columns_p >= 0]
        # Counts below 2^24 are exact in float32.
        ones = np.ones(len(columns_p), np.float32)
        taken_Un = sp.csr_matrix((ones, columns_p, ends.astype(np.int32)), shape=(last - first, fitted))
        together_nn += (taken_Un.T @ taken_Un).toarray()
        users += int((np.diff(ends) > 0).sum())
        first = last
    return together_nn, users


def ease(together_nn: Floats, penalty: float) -> Floats:
    """B of EASE from X^T X. Raises UsageError if X^T X + penalty has no inverse."""
    damped = np.array(together_nn, order="F")
    damped[np.diag_indices(len(damped))] += penalty
    factor, fault = lapack.dpotrf(damped, lower=1, overwrite_a=1)
    inverse_nn, fault_of_inverse = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if fault or fault_of_inverse:
        raise UsageError(
            f"model.item_item.penalty: X^T X + {penalty:g} of the known items of users has no inverse: raise the penalty"
        )
    _copy_lower(inverse_nn)
    b_nn = np.divide(inverse_nn, -np.diag(inverse_nn), out=inverse_nn)
    np.fill_diagonal(b_nn, 0.0)
    return b_nn


def _copy_lower(matrix_nn: Floats, block: int = 512) -> None:
    """Make a matrix symmetric, of which only the lower triangle is known. In place: it may be a large part of the memory."""
    for start in range(0, len(matrix_nn), block):
        stop = start + block
        matrix_nn[start:stop, stop:] = matrix_nn[stop:, start:stop].T
        corner = matrix_nn[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T


def _largest_eigenvectors(together_nn: Floats, b_nn: Floats, rank: int) -> Floats:
    """[n, r] eigenvectors of (X B)^T X B, largest eigenvalue first. Each has its largest component above 0."""
    vectors = None
    if len(b_nn) > DENSE:
        vectors = _by_products(together_nn, b_nn, rank)
    if vectors is None:
        vectors = np.linalg.eigh(b_nn.T @ together_nn @ b_nn)[1][:, ::-1][:, :rank]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(rank)])
    return np.asarray(vectors * signs)


def _by_products(together_nn: Floats, b_nn: Floats, rank: int) -> Floats | None:
    """The eigenvectors by products with the matrix, which takes a small part of the time; None if that does not converge.

    It does not if many eigenvalues are equal, for instance if most users took one item.
    """
    n = len(b_nn)
    squared = LinearOperator((n, n), matvec=lambda x: b_nn.T @ (together_nn @ (b_nn @ x)), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)  # the same start on every run
    try:
        return np.asarray(eigsh(squared, k=rank, v0=start)[1][:, ::-1])
    except ArpackError:
        return None
