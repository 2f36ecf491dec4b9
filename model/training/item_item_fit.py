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

Ints = npt.NDArray[np.int64]
DENSE = 1000  # Up to this many items, all eigenvectors are computed: that is fast, and never fails.


class ItemItemFit(NamedTuple):
    """The tables, and what they were fitted on."""

    tables: ItemItemTables
    users: int
    items: int
    pairs: int


def fit_item_item(users_p: Ints, items_p: Ints, size: int, rank: int, config: ItemItemConfig) -> ItemItemFit:
    """Fit on distinct pairs of user and item index (below `size`).

    Only the `config.items` items with the most users are fitted, because the time grows with the cube of their number. If
    fewer than `rank` can be, the rest of the columns are 0, so that vectors of all nights have one length.
    """
    counts = np.bincount(items_p, minlength=size)
    fitted = np.sort(np.argsort(-counts, kind="stable")[: config.items])
    fitted = fitted[counts[fitted] > 0]
    of_history, of_items = (np.zeros((len(fitted) + 1, rank), np.float32) for _ in range(2))
    place_V = np.zeros(size, np.int32)
    place_V[fitted] = np.arange(1, len(fitted) + 1)
    columns = place_V[items_p] - 1
    owners, rows = np.unique(users_p[columns >= 0], return_inverse=True)
    columns = columns[columns >= 0]
    if len(fitted) > 2:
        ones, shape = np.ones(len(rows)), (len(owners), len(fitted))
        taken_Un = sp.csr_matrix((ones, (rows, columns)), shape=shape)
        together_nn = np.asarray((taken_Un.T @ taken_Un).todense())
        b_nn = ease(together_nn, config.penalty * len(rows) / len(fitted))
        b_nn *= (len(rows) / len(fitted) / together_nn.diagonal()) ** config.popularity_exponent
        v_nr = _largest_eigenvectors(together_nn, b_nn, min(rank, len(fitted) - 1))
        of_history[1:, : v_nr.shape[1]] = b_nn @ v_nr
        of_items[1:, : v_nr.shape[1]] = v_nr
    tables = ItemItemTables(*(torch.from_numpy(table) for table in (place_V, of_history, of_items)))
    return ItemItemFit(tables, len(owners), len(fitted), len(rows))


def ease(together_nn: npt.NDArray[np.float64], penalty: float) -> npt.NDArray[np.float64]:
    """B of EASE from X^T X."""
    damped = np.array(together_nn, order="F")
    damped[np.diag_indices(len(damped))] += penalty
    factor, fault = lapack.dpotrf(damped, lower=1, overwrite_a=1)
    inverse, fault_of_inverse = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if fault or fault_of_inverse:
        raise ValueError(f"X^T X + {penalty:g} has no inverse: raise model.item_item.penalty")
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    b_nn = inverse / -np.diag(inverse)
    np.fill_diagonal(b_nn, 0.0)
    return b_nn


def _largest_eigenvectors(
    together_nn: npt.NDArray[np.float64], b_nn: npt.NDArray[np.float64], rank: int
) -> npt.NDArray[np.float64]:
    """[n, r] eigenvectors of (X B)^T X B, largest eigenvalue first. Each has its largest component above 0."""
    vectors = None
    if len(b_nn) > DENSE:
        vectors = _by_products(together_nn, b_nn, rank)
    if vectors is None:
        vectors = np.linalg.eigh(b_nn.T @ together_nn @ b_nn)[1][:, ::-1][:, :rank]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(rank)])
    return np.asarray(vectors * signs)


def _by_products(
    together_nn: npt.NDArray[np.float64], b_nn: npt.NDArray[np.float64], rank: int
) -> npt.NDArray[np.float64] | None:
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
