"""Packed rows of `samples`: several positives of one user per row. Unpacks them to one row per positive.

A packed row has the user's features and one history, and lists with an entry per positive (docs/tables.md). Towers, losses
and masks work on one row per positive, so training unpacks each batch. The packed histories stay in the batch, because a
sequence tower encodes each of them once.

Shapes: P packed rows, T positives per packed row, N positives of a batch, K negatives per positive, L history length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.data.item_versions import SNAPSHOT
from model.io.arrow import ColumnError
from model.network.sequence_encoder import PACKED_ACTIONS, PACKED_AGES, PACKED_HISTORY, PACKED_ROW, PACKED_SEEN
from pipelines.contract.indices import PADDING
from pipelines.contract.schema import FeatureSchema, columns_of

Arrays = dict[str, np.ndarray]

WEIGHT = "weight"
NEGATIVES = ("negatives", "negative_kinds", "negative_log_q")
# Columns that only packed rows have, [P, T]: how many items of the row's history the positive sees, the oldest ones; seconds
# from the positive's request to the newest request of the row.
SEEN, LAG = "history_seen", "request_lag"
_REMEDY = "write the samples again with build_negatives"


@dataclass(frozen=True)
class Packing:
    """The layout of packed rows: which columns have an entry per positive follows from the schema.

    pack: the most positives per row, T.
    """

    schema: FeatureSchema
    pack: int

    @property
    def columns(self) -> list[str]:
        """Columns that training reads only from packed rows."""
        history = self.schema.history
        if history is None:
            return []
        return [SEEN, history.ages_column, LAG] if history.ages_column else [SEEN]

    @property
    def scalars(self) -> set[str]:
        """Columns with one value per positive: [P, T] in packed rows."""
        age, context = self.schema.example_age, self.schema.context
        scalars = {self.schema.item_id.column, SNAPSHOT, WEIGHT, SEEN, LAG, *columns_of(context)} - self.lists
        return scalars | ({age.column} if age else set())

    @property
    def lists(self) -> set[str]:
        """Columns with a list of equal length V per positive: [P, T * V] in packed rows, positive t at t * V."""
        context = [feature for feature in self.schema.context if hasattr(feature, "length")]
        return {*NEGATIVES, *columns_of(context)}

    def count_positives(self, rows: Arrays) -> int:
        """Number of positives in packed rows."""
        return int(np.count_nonzero(rows[self.schema.item_id.column]))

    def check(self, rows: Arrays, url: str) -> None:
        """Raise ColumnError if columns do not have the shape of packed rows, or a positive sees more items than there are."""
        for name in sorted(self.scalars & rows.keys()):
            if rows[name].shape[1:] != (self.pack,):
                raise ColumnError(
                    f"column {name!r} of samples has {_shape(rows[name])} in {url}, but the manifest says pack = "
                    f"{self.pack}: a list of {self.pack} values per row. The files and the manifest are from different runs: "
                    f"{_REMEDY}"
                )
        for name in sorted(self.lists & rows.keys()):
            if rows[name].ndim != 2 or rows[name].shape[1] % self.pack:
                raise ColumnError(
                    f"column {name!r} of samples has {_shape(rows[name])} in {url}, but the manifest says pack = "
                    f"{self.pack}: the length of the lists must be a multiple of it: {_REMEDY}"
                )
        if self.schema.history:
            lengths_P1 = (rows[self.schema.history.column] != PADDING).sum(1, keepdims=True)
            wrong_PT = (rows[SEEN] < 0) | (rows[SEEN] > lengths_P1)
            if wrong_PT.any():
                row, place = np.argwhere(wrong_PT)[0]
                raise ColumnError(
                    f"column {SEEN!r} of samples in {url}: {int(wrong_PT.any(1).sum())} rows have a positive that sees more "
                    f"items than the history has, for instance {rows[SEEN][row, place]} of {lengths_P1[row, 0]} in row {row}: "
                    f"{_REMEDY}"
                )


def require_unpacked(rows: Arrays, url: str) -> None:
    """Raise ColumnError if rows are packed although the manifest has no `pack`."""
    if WEIGHT in rows and rows[WEIGHT].ndim > 1:
        raise ColumnError(
            f"column {WEIGHT!r} of samples has {_shape(rows[WEIGHT])} in {url}, so its rows are packed, but the manifest has "
            f"no `pack`. The files and the manifest are from different runs: {_REMEDY}"
        )


def _shape(values: np.ndarray) -> str:
    return "one value per row" if values.ndim == 1 else f"lists of {values.shape[1]} values"


def unpack(batch: Arrays, schema: FeatureSchema, pack: int) -> Arrays:
    """Convert P packed rows to N rows, one per positive, in the order of the packed rows.

    All columns that training reads have the shapes of rows that were never packed. Adds PACKED_HISTORY, PACKED_AGES and
    PACKED_ACTIONS (if the schema has them), PACKED_ROW and PACKED_SEEN if there is a history. Uses numpy: see
    batching._Window.
    """
    packing = Packing(schema, pack)
    scalars, lists, history = packing.scalars, packing.lists, schema.history
    places_N = np.flatnonzero(batch[schema.item_id.column] != PADDING)
    rows_N = places_N // pack
    unpacked: Arrays = {}
    for name, values in batch.items():
        if name in scalars:
            unpacked[name] = values.reshape(-1).take(places_N)
        elif name in lists:
            unpacked[name] = values.reshape(len(values) * pack, values.shape[1] // pack).take(places_N, axis=0)
        elif history is None or name not in history.columns:
            unpacked[name] = values.take(rows_N, axis=0)
    if history is None:
        return unpacked
    history_PL, seen_N = batch[history.column], unpacked.pop(SEEN)
    unseen_N = (history_PL != PADDING).sum(1)[rows_N] - seen_N
    history_NL = _without_newest(history_PL, rows_N, unseen_N)
    packed = {PACKED_HISTORY: history_PL, PACKED_ROW: rows_N, PACKED_SEEN: seen_N, history.column: history_NL}
    if history.ages_column:
        ages_PL = batch[history.ages_column]
        # Ages in the row are those at its newest request.
        ages_NL = _without_newest(ages_PL, rows_N, unseen_N) - unpacked[LAG][:, None]
        packed |= {PACKED_AGES: ages_PL, history.ages_column: np.where(history_NL != PADDING, ages_NL, 0)}
    if history.actions:
        actions_PL = batch[history.actions.column]
        packed |= {
            PACKED_ACTIONS: actions_PL,
            history.actions.column: _without_newest(actions_PL, rows_N, unseen_N),
        }
    return unpacked | packed


def _without_newest(values_PL: np.ndarray, rows_N: np.ndarray, unseen_N: np.ndarray) -> np.ndarray:
    """[N, L]: each positive's row without its last `unseen_N` values: shifted to the right, 0 on the left.

    Each result is one contiguous window of the row with L zeros before it, so the copy is one memcpy per positive.
    """
    rows, length = values_PL.shape
    padded = np.zeros((max(rows, 1), 2 * length), values_PL.dtype)
    padded[:rows, length:] = values_PL
    windows = np.lib.stride_tricks.sliding_window_view(padded.reshape(-1), length)
    return windows[rows_N * (2 * length) + length - unseen_N]


def concatenate(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of the rows of several batches, packed or not."""
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    if PACKED_ROW in whole:
        before = 0
        rows = []
        for batch in batches:
            rows.append(batch[PACKED_ROW] + before)
            before += len(batch[PACKED_HISTORY])
        whole[PACKED_ROW] = torch.cat(rows)
    return whole


def share_of(batch: dict[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """This rank's part of a batch: every world_size-th row; of packed rows, with all of their positives."""
    if PACKED_ROW not in batch:
        return {name: values[rank::world_size] for name, values in batch.items()}
    mine_N = batch[PACKED_ROW] % world_size == rank
    share = {
        name: values[rank::world_size] if name in (PACKED_HISTORY, PACKED_AGES, PACKED_ACTIONS) else values[mine_N]
        for name, values in batch.items()
    }
    share[PACKED_ROW] = share[PACKED_ROW] // world_size
    return share
