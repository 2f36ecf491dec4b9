"""The candidate set of a step: which items each row's positive is set against.

In-batch positives and easy negatives of all ranks form one shared set; hard negatives belong to their row. An item that
enters the shared set c times is held once with count c: weighing it c times is the same sum, on fewer columns.

Rows of different days may see different versions of an item's features (model/data/item_versions.py). What is embedded once is
therefore a row of the catalogue, an item in one version, and an item may stand in the shared set in several versions. What
is masked is the item, whichever version of it stands there.

Shapes: G rows of the global batch (padded), B rows of this rank, K negatives a row, U shared candidates, L history
length, E excluded places.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.data.item_versions import Versions
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.negative_kinds import COARSE, FINE, POPULARITY, UNIFORM


@dataclass(frozen=True)
class BatchRows:
    """Rows as indices: users [G] (0: unknown), items [G] (0: no row), negatives and their kinds [G, K].

    `snapshots` [G]: the items snapshot that each row sees (YYYYMMDD); None: items as they are now.
    """

    users: Tensor
    items: Tensor
    negatives: Tensor
    kinds: Tensor
    snapshots: Tensor | None = None


@dataclass(frozen=True)
class StepCandidates:
    """The candidates of this rank's rows. Everything about the shared set is the same on every rank."""

    rows_U: Tensor  # Shared candidates as rows of the catalogue, sorted, no padding.
    items_U: Tensor  # The item of each, sorted too.
    counts_U: Tensor  # How many times each has entered, float.
    item_counts_U: Tensor  # How many times its item has entered, in any version.
    positive_B: Tensor  # Place in U of each row's positive.
    excluded_rows_E: Tensor  # Row and place in U of a candidate that is no negative of that row: in its history,
    excluded_places_E: Tensor  # or another positive of its user. The row's own positive is not listed.
    hard_BK: Tensor  # Hard negatives as rows of the catalogue, 0 elsewhere.
    rows: int  # Rows of the global batch.
    uniform: int  # Easy negatives of the global batch, by kind.
    popularity: int
    hard_excluded: int  # Hard negatives of this rank that were masked.

    def in_blocks(self, rows: int) -> Iterator[tuple[slice, "StepCandidates"]]:
        """So many rows after another, with the same shared candidates: which rows, and theirs alone."""
        excluded_rows_E, order_E = torch.sort(self.excluded_rows_E)
        excluded_places_E = self.excluded_places_E[order_E]
        starts = range(0, len(self.positive_B), rows)
        bounds = torch.searchsorted(excluded_rows_E, torch.tensor([*starts, len(self.positive_B)])).tolist()
        for start, first, last in zip(starts, bounds, bounds[1:]):
            block = slice(start, start + rows)
            yield (
                block,
                replace(
                    self,
                    positive_B=self.positive_B[block],
                    excluded_rows_E=excluded_rows_E[first:last] - start,
                    excluded_places_E=excluded_places_E[first:last],
                    hard_BK=self.hard_BK[block],
                ),
            )


def collect_candidates(
    batch: BatchRows,
    local: BatchRows,
    history_BL: Tensor | None,
    versions: Versions | None = None,
    *,
    positives_once: bool = False,
) -> StepCandidates:
    """The candidates for this rank's rows, out of the global batch (which holds the local rows too).

    `versions`: which row of the catalogue an item is for a row of the batch; None: the row of its index.
    `positives_once`: an item that is the positive of several rows enters once for all of them, so that its expected
    entries are its chance to be among the positives: what a streaming estimate knows. Raises ValueError where a local
    positive is padding.
    """
    if bool((local.items == PADDING).any()):
        raise ValueError(f"{int((local.items == PADDING).sum())} rows have item 0 (padding) as their positive")
    versions = versions or Versions.none()
    rows_U, counts_U = _entered(batch, versions, positives_once)
    items_U, item_counts_U, versions_U = rows_U, counts_U, None
    if len(versions):
        items_U = versions.items(rows_U)
        _, item_U, versions_D = torch.unique_consecutive(items_U, return_inverse=True, return_counts=True)
        item_counts_U = torch.zeros(len(versions_D)).index_add_(0, item_U, counts_U)[item_U]
        versions_U = versions_D[item_U]
    positive_B = torch.searchsorted(rows_U, versions.rows(local.items, local.snapshots))

    rows, places = _other_positives(batch, local, items_U)
    if history_BL is not None:
        history_rows, history_places = _places_of(history_BL, items_U)
        rows, places = torch.cat([rows, history_rows]), torch.cat([places, history_places])
    if versions_U is not None:
        own_rows, own_places = _places_of(local.items[:, None], items_U)
        rows, places = _every_version(torch.cat([rows, own_rows]), torch.cat([places, own_places]), versions_U)
    keep = places != positive_B[rows]

    hard_BK = local.negatives.masked_fill((local.kinds != COARSE) & (local.kinds != FINE), PADDING)
    excluded_BK = (hard_BK == local.items[:, None]) | _among_positives(batch, local.users, hard_BK)
    if history_BL is not None:
        excluded_BK |= (hard_BK[:, :, None] == history_BL[:, None, :]).any(2)  # K is small: no search needed.
    excluded_BK &= hard_BK != PADDING
    hard_BK = hard_BK.masked_fill(excluded_BK, PADDING)
    return StepCandidates(
        rows_U=rows_U,
        items_U=items_U,
        counts_U=counts_U,
        item_counts_U=item_counts_U,
        positive_B=positive_B,
        excluded_rows_E=rows[keep],
        excluded_places_E=places[keep],
        hard_BK=versions.rows(hard_BK, _column(local.snapshots)),
        rows=int((batch.items != PADDING).sum()),
        uniform=int((batch.kinds == UNIFORM).sum()),
        popularity=int((batch.kinds == POPULARITY).sum()),
        hard_excluded=int(excluded_BK.sum()),
    )


def _entered(batch: BatchRows, versions: Versions, positives_once: bool) -> tuple[Tensor, Tensor]:
    """[U] distinct rows of the catalogue that entered the shared set, sorted, and how many times each did, float."""
    easy_GK = (batch.kinds == UNIFORM) | (batch.kinds == POPULARITY)
    positives = versions.rows(batch.items, batch.snapshots)
    easy = versions.rows(batch.negatives, _column(batch.snapshots))[easy_GK]
    shares_P = None
    if positives_once:
        positives, rows_P = positives[positives != PADDING].unique(return_counts=True)
        if len(versions):
            # One entry an item, not one a version: each version has the share of the item's rows that see it.
            _, item_P = torch.unique_consecutive(versions.items(positives), return_inverse=True)
            rows_D = torch.zeros(len(positives)).index_add_(0, item_P, rows_P.float())
            shares_P = rows_P / rows_D[item_P]
    entered = torch.cat([positives, easy])
    rows_U, counts_U = torch.unique(entered[entered != PADDING], return_counts=True)
    counts_U = counts_U.float()
    if shares_P is not None:
        counts_U[torch.searchsorted(rows_U, positives)] += shares_P - 1
    return rows_U, counts_U


def _column(snapshots_G: Tensor | None) -> Tensor | None:
    return None if snapshots_G is None else snapshots_G[:, None]


def _every_version(rows: Tensor, places: Tensor, versions_U: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and places of all versions of some items. `places`: the first of each; versions_U: how many its item has."""
    counts = versions_U[places]
    step = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.repeat_interleave(rows, counts), torch.repeat_interleave(places, counts) + step


def _places_of(items_BL: Tensor, items_U: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and first places in U of those of some items, row by row, that are candidates. By search: B x L x log U."""
    places_BL = torch.searchsorted(items_U, items_BL).clamp(max=len(items_U) - 1)
    found_BL = (items_U[places_BL] == items_BL) & (items_BL != PADDING)
    return found_BL.nonzero(as_tuple=True)[0], places_BL[found_BL]


def _among_positives(batch: BatchRows, users_B: Tensor, items_BK: Tensor) -> Tensor:
    """[B, K]: is an item a positive of the row's user anywhere in the global batch? By search in user-item pairs."""
    known_G = (batch.users > DEFAULT) & (batch.items != PADDING)
    if not bool(known_G.any()):
        return torch.zeros_like(items_BK, dtype=torch.bool)
    size = int(torch.maximum(batch.items.max(), items_BK.max() if items_BK.numel() else batch.items.max())) + 1
    pairs_S = torch.sort(batch.users[known_G] * size + batch.items[known_G]).values
    asked_BK = users_B[:, None] * size + items_BK
    places_BK = torch.searchsorted(pairs_S, asked_BK).clamp(max=len(pairs_S) - 1)
    return (pairs_S[places_BK] == asked_BK) & (users_B[:, None] > DEFAULT)


def _other_positives(batch: BatchRows, local: BatchRows, items_U: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and first places in U of the positives that the row's user has anywhere in the global batch."""
    # Unknown users share index 1 without being one person, so theirs are left in.
    known_G = (batch.users > DEFAULT) & (batch.items != PADDING)
    users_S, order = torch.sort(batch.users[known_G], stable=True)
    places_S = torch.searchsorted(items_U, batch.items[known_G][order])
    first_B = torch.searchsorted(users_S, local.users)
    found_B = torch.searchsorted(users_S, local.users, right=True) - first_B
    found_B = torch.where(local.users > DEFAULT, found_B, 0)
    rows = torch.repeat_interleave(torch.arange(len(found_B)), found_B)
    step = torch.arange(len(rows)) - torch.repeat_interleave(found_B.cumsum(0) - found_B, found_B)
    return rows, places_S[first_B[rows] + step]
