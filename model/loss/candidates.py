"""The candidate set of a step: the items that each row's positive is compared with.

In-batch positives and easy negatives of all ranks form one shared set. Hard negatives belong to one row. An item that
enters the shared set c times is stored once with count c. Weighting it by c gives the same sum with fewer columns.

Rows of different days may see different versions of an item's features (model/data/item_versions.py). The unit that is
embedded once is therefore a row of the catalogue: an item in one version. An item may be in the shared set in several
versions. Masks apply to the item, in any version.

Shapes: G rows of the global batch (padded), B rows of this rank, K negatives per row, U shared candidates, L history
length, E excluded (row, candidate) pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.data.item_versions import Versions
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.negative_kinds import COARSE, FINE, MINED, NONE, POPULARITY, UNIFORM

SPREAD = 2_654_435_761  # Knuth's multiplicative hash: 2**32 divided by the golden ratio


@dataclass(frozen=True)
class BatchRows:
    """Rows of a batch as indices: users [G] (1: unknown), items [G] (0: padding row), negatives and their kinds [G, K].

    `snapshots` [G]: the items snapshot that each row sees (YYYYMMDD); None: current features.
    """

    users: Tensor
    items: Tensor
    negatives: Tensor
    kinds: Tensor
    snapshots: Tensor | None = None


@dataclass(frozen=True)
class StepCandidates:
    """The candidates of this rank's rows. The shared set is the same on every rank."""

    rows_U: Tensor  # Rows of the catalogue of the shared candidates, sorted, without padding.
    items_U: Tensor  # Item of each shared candidate, sorted.
    counts_U: Tensor  # How often each shared candidate entered the set, float.
    item_counts_U: Tensor  # How often its item entered the set, in any version.
    positive_B: Tensor  # Position in U of each row's positive.
    excluded_rows_E: Tensor  # Row and position in U of candidates that are not negatives of the row: items of its
    excluded_places_E: Tensor  # history and other positives of its user. The row's own positive is not included.
    # How often each shared candidate entered the set as a hard negative; None: hard negatives belong to their row.
    hard_counts_U: Tensor | None
    hard_BK: Tensor  # Hard negatives of each row as rows of the catalogue; 0: none.
    rows: int  # Rows of the global batch.
    uniform: int  # Uniform easy negatives of the global batch.
    popularity: int  # Popularity-sampled easy negatives of the global batch.
    hard_excluded: int  # Hard negatives of this rank that were masked.

    def in_blocks(self, rows: int) -> Iterator[tuple[slice, "StepCandidates"]]:
        """Split into blocks of `rows` rows with the same shared candidates. Yields (slice of the rows, candidates)."""
        excluded_rows_E, order_E = torch.sort(self.excluded_rows_E)
        excluded_places_E = self.excluded_places_E[order_E]
        starts = range(0, len(self.positive_B), rows)
        bounds = torch.searchsorted(
            excluded_rows_E, excluded_rows_E.new_tensor([*starts, len(self.positive_B)])
        ).tolist()
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


def with_most_easy(batch: BatchRows, most: int | None) -> BatchRows:
    """The batch with at most so many easy negatives; None: all. The others get kind NONE.

    The choice depends only on their places in the batch, so it is the same on every rank. It is spread over all kinds.
    """
    easy_E = _is_easy(batch.kinds).flatten().nonzero().squeeze(1)
    if most is None or len(easy_E) <= most:
        return batch
    spread_E = torch.arange(len(easy_E), device=easy_E.device) * SPREAD % 2**32
    left_out_E = easy_E[spread_E.argsort()[most:]]
    kinds = batch.kinds.flatten().index_fill(0, left_out_E, NONE).view_as(batch.kinds)
    return replace(batch, kinds=kinds)


def collect_candidates(
    batch: BatchRows,
    local: BatchRows,
    history_BL: Tensor | None,
    versions: Versions | None = None,
    *,
    positives_once: bool = False,
    share_hard: bool = False,
) -> StepCandidates:
    """Collect the candidates of this rank's rows from the global batch, which includes the local rows.

    `versions`: maps items to rows of the catalogue; None: an item's row is its index.
    `positives_once`: an item that is the positive of several rows enters once. Its expected count is then its probability
    of being among the positives, which is what a streaming estimate gives.
    `share_hard`: hard negatives enter the shared set, each as often as it occurs, and belong to no row. Their counts are
    separate, because they have no expected count.
    Raises ValueError if a local positive is padding.
    """
    if bool((local.items == PADDING).any()):
        raise ValueError(f"{int((local.items == PADDING).sum())} rows have item 0 (padding) as their positive")
    versions = versions or Versions.none()
    rows_U, counts_U = _entered(batch, versions, positives_once)
    hard_counts_U = None
    if share_hard:
        rows_U, counts_U, hard_counts_U = _with_hard(batch, versions, rows_U, counts_U)
    items_U, item_counts_U, versions_U = rows_U, counts_U, None
    if len(versions):
        items_U = versions.items(rows_U)
        _, item_U, versions_D = torch.unique_consecutive(items_U, return_inverse=True, return_counts=True)
        item_counts_U = counts_U.new_zeros(len(versions_D)).index_add_(0, item_U, counts_U)[item_U]
        versions_U = versions_D[item_U]
    positive_B = torch.searchsorted(rows_U, versions.rows(local.items, local.snapshots).contiguous())

    rows, places = _other_positives(batch, local, items_U)
    if history_BL is not None:
        history_rows, history_places = places_of(history_BL, items_U)
        rows, places = torch.cat([rows, history_rows]), torch.cat([places, history_places])
    if versions_U is not None:
        own_rows, own_places = places_of(local.items[:, None], items_U)
        rows, places = _every_version(torch.cat([rows, own_rows]), torch.cat([places, own_places]), versions_U)
    keep = places != positive_B[rows]

    hard_BK, hard_excluded = _own_hard(batch, local, history_BL)
    return StepCandidates(
        rows_U=rows_U,
        items_U=items_U,
        counts_U=counts_U,
        item_counts_U=item_counts_U,
        positive_B=positive_B,
        excluded_rows_E=rows[keep],
        excluded_places_E=places[keep],
        hard_counts_U=hard_counts_U,
        hard_BK=torch.zeros_like(hard_BK) if share_hard else versions.rows(hard_BK, _column(local.snapshots)),
        rows=int((batch.items != PADDING).sum()),
        uniform=int((batch.kinds == UNIFORM).sum()),
        popularity=int((batch.kinds == POPULARITY).sum()),
        hard_excluded=hard_excluded,
    )


def _own_hard(batch: BatchRows, local: BatchRows, history_BL: Tensor | None) -> tuple[Tensor, int]:
    """(hard negatives of the local rows [B, K], how many of them were excluded). Excluded ones become padding."""
    hard_BK = local.negatives.masked_fill(~_is_hard(local.kinds), PADDING)
    excluded_BK = (hard_BK == local.items[:, None]) | _among_positives(batch, local.users, hard_BK)
    if history_BL is not None:
        excluded_BK |= (hard_BK[:, :, None] == history_BL[:, None, :]).any(2)  # K is small, so no search is needed.
    excluded_BK &= hard_BK != PADDING
    return hard_BK.masked_fill(excluded_BK, PADDING), int(excluded_BK.sum())


def _is_easy(kinds_GK: Tensor) -> Tensor:
    return (kinds_GK == UNIFORM) | (kinds_GK == POPULARITY)


def _is_hard(kinds_GK: Tensor) -> Tensor:
    return (kinds_GK == COARSE) | (kinds_GK == FINE) | (kinds_GK == MINED)


def _entered(batch: BatchRows, versions: Versions, positives_once: bool) -> tuple[Tensor, Tensor]:
    """[U] distinct rows of the catalogue that entered the shared set, sorted, and how often each entered, as float."""
    easy_GK = _is_easy(batch.kinds)
    positives = versions.rows(batch.items, batch.snapshots)
    easy = versions.rows(batch.negatives, _column(batch.snapshots))[easy_GK]
    shares_P = None
    if positives_once:
        positives, rows_P = positives[positives != PADDING].unique(return_counts=True)
        if len(versions):
            # One entry per item. A version gets the fraction of the item's rows that see it.
            _, item_P = torch.unique_consecutive(versions.items(positives), return_inverse=True)
            rows_P = rows_P.float()
            rows_D = rows_P.new_zeros(len(positives)).index_add_(0, item_P, rows_P)
            shares_P = rows_P / rows_D[item_P]
    entered = torch.cat([positives, easy])
    rows_U, counts_U = torch.unique(entered[entered != PADDING], return_counts=True)
    counts_U = counts_U.float()
    if shares_P is not None:
        counts_U[torch.searchsorted(rows_U, positives)] += shares_P - 1
    return rows_U, counts_U


def _with_hard(batch: BatchRows, versions: Versions, rows_U: Tensor, counts_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shared set with the hard negatives of the global batch: rows, draws, counts as hard negatives."""
    hard = versions.rows(batch.negatives, _column(batch.snapshots))[_is_hard(batch.kinds)]
    rows_H, counts_H = torch.unique(hard[hard != PADDING], return_counts=True)
    both_U = torch.unique(torch.cat([rows_U, rows_H]))
    zeros_U = counts_U.new_zeros(len(both_U))
    drawn_U = zeros_U.index_copy(0, torch.searchsorted(both_U, rows_U), counts_U)
    return both_U, drawn_U, zeros_U.index_copy(0, torch.searchsorted(both_U, rows_H), counts_H.to(counts_U.dtype))


def _column(snapshots_G: Tensor | None) -> Tensor | None:
    return None if snapshots_G is None else snapshots_G[:, None]


def _every_version(rows: Tensor, places: Tensor, versions_U: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions of all versions of items. `places`: the first version; versions_U: versions of each item."""
    counts = versions_U[places]
    before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    step = torch.arange(len(before), device=counts.device) - before
    return torch.repeat_interleave(rows, counts), torch.repeat_interleave(places, counts) + step


def places_of(items_BL: Tensor, items_U: Tensor) -> tuple[Tensor, Tensor]:
    """Row and first position in U of each item that is a candidate. Binary search: B x L x log U."""
    places_BL = torch.searchsorted(items_U, items_BL).clamp(max=len(items_U) - 1)
    is_candidate_BL = (items_U[places_BL] == items_BL) & (items_BL != PADDING)
    return is_candidate_BL.nonzero(as_tuple=True)[0], places_BL[is_candidate_BL]


def _among_positives(batch: BatchRows, users_B: Tensor, items_BK: Tensor) -> Tensor:
    """[B, K]: whether an item is a positive of the row's user anywhere in the global batch. Searches (user, item) pairs."""
    known_user_G = (batch.users > DEFAULT) & (batch.items != PADDING)
    if not bool(known_user_G.any()):
        return torch.zeros_like(items_BK, dtype=torch.bool)
    size = int(torch.maximum(batch.items.max(), items_BK.max() if items_BK.numel() else batch.items.max())) + 1
    pairs_S = torch.sort(batch.users[known_user_G] * size + batch.items[known_user_G]).values
    asked_BK = users_B[:, None] * size + items_BK
    places_BK = torch.searchsorted(pairs_S, asked_BK).clamp(max=len(pairs_S) - 1)
    return (pairs_S[places_BK] == asked_BK) & (users_B[:, None] > DEFAULT)


def _other_positives(batch: BatchRows, local: BatchRows, items_U: Tensor) -> tuple[Tensor, Tensor]:
    """Row and first position in U of all positives of the row's user in the global batch."""
    # Unknown users share index 1 but are different people, so their positives are not excluded.
    known_user_G = (batch.users > DEFAULT) & (batch.items != PADDING)
    users_S, order = torch.sort(batch.users[known_user_G], stable=True)
    places_S = torch.searchsorted(items_U, batch.items[known_user_G][order])
    users_B = local.users.contiguous()
    first_B = torch.searchsorted(users_S, users_B)
    positives_B = torch.searchsorted(users_S, users_B, right=True) - first_B
    positives_B = torch.where(local.users > DEFAULT, positives_B, 0)
    rows = torch.repeat_interleave(torch.arange(len(positives_B), device=positives_B.device), positives_B)
    before = torch.repeat_interleave(positives_B.cumsum(0) - positives_B, positives_B)
    step = torch.arange(len(rows), device=rows.device) - before
    return rows, places_S[first_B[rows] + step]
