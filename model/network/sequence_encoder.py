"""Reads histories as sequences: a causal transformer over their items (SASRec: Kang and McAuley, ICDM 2018).

Tokens are left-aligned behind a start token, and padding comes after them. Attention is causal, so no token sees padding, and
state s depends on the first s items only. A packed row of `samples` is therefore encoded once: the positive that sees s of
its items reads state s. A row that is not packed reads the state of its newest item.

Shapes: P histories, N states that are read, L history length, S tokens (the start and at most L items), V values of a
feature, h heads, w width.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field as Setting
from pydantic import PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.embeddings import Batch, column_of, hide_positions, mean_of_values
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.schema import HistoryFeature
from pipelines.contract.strict import StrictModel

# Columns of a batch of packed rows, beside those of its positives: histories, ages and actions [P, L]; the packed row of each
# positive, and how many items of its history the positive sees [N].
PACKED_HISTORY, PACKED_AGES, PACKED_ACTIONS = "packed_history", "packed_ages", "packed_actions"
PACKED_ROW, PACKED_SEEN = "packed_row", "packed_seen"
UNKNOWN_AGE = -1  # An age of a history item that a request does not state, in seconds.
OLDEST_AGE = 2**31 - 1  # 68 years: tables store ages as int32.
UNKNOWN_SHARE = 0.05  # Share of histories whose ages, and actions, training hides: a request may come without them.
_UNKNOWN, _BUCKETS = 0, 33  # Gaps of 0, 1, 2-3, 4-7, … seconds have buckets 1, 2, 3, 4, … up to OLDEST_AGE.


class TransformerSettings(StrictModel):
    """The size of the transformer, its regularisation, and what it knows about time."""

    blocks: PositiveInt = Setting(2, description="Number of transformer blocks: attention, then a feed-forward layer.")
    heads: PositiveInt = Setting(2, description="Attention heads per block. They share the width.")
    width: PositiveInt = Setting(64, description="Length of tokens and states: a multiple of heads.")
    feed_forward: PositiveInt = Setting(
        1, description="Width of the hidden feed-forward layer, as a multiple of width. SASRec: 1; language models: 4."
    )
    dropout: float = Setting(
        0.2, ge=0, lt=1, description="Probability of zeroing a number of a token or of a layer's output in training."
    )
    time: Literal["none", "gaps"] = Setting(
        "none",
        description="gaps: the tokens know the time since the item before, and the state knows the time from the newest item "
        "to the request. Needs features.history.ages. none: only the order.",
    )
    actions: bool = Setting(
        False,
        description="true: the tokens know by which action (click, purchase, …) each item became a positive. Needs "
        "features.history.actions.",
    )

    @field_validator("width")
    @classmethod
    def _divisible(cls, width: int, info: ValidationInfo) -> int:
        heads = info.data.get("heads")
        if heads and width % heads:
            raise ValueError(f"{width} cannot be shared by {heads} heads: take a multiple of {heads}")
        return width


class TokenPart(NamedTuple):
    """A part of each token: the embedding of a column of the history, [P, L] or [P, L, V], from a table."""

    column: str
    table: str
    length: int


class SequenceEncoder(nn.Module):
    """Maps histories to states [N, w]. A user without history gets the state of the start token."""

    def __init__(
        self,
        history: HistoryFeature,
        parts: Sequence[TokenPart],
        settings: TransformerSettings,
        history_dropout: float = 0.0,
    ) -> None:
        """`parts`: the parts of a token; the first one is the item. `history_dropout`: see ModelConfig.

        Raises ValueError if the settings need ages or actions and the history has none.
        """
        super().__init__()
        if settings.actions and history.actions is None:
            raise ValueError(
                "model.settings.actions: true needs the actions of history items: set features.history.actions: true, or "
                "actions: false"
            )
        if settings.time == "gaps" and history.ages_column is None:
            raise ValueError(
                "model.settings.time: gaps needs the ages of history items: set features.history.ages: true, or time: none"
            )
        self.history, self.parts, self.length = history, list(parts), settings.width
        self.ages_column = history.ages_column if settings.time == "gaps" else None
        self.actions_column = history.actions.column if settings.actions and history.actions else None
        self.history_dropout = history_dropout
        width = settings.width
        self.projections = nn.ModuleList(
            nn.Identity() if part.length == width else nn.Linear(part.length, width, bias=False) for part in parts
        )
        self.position_Sw = nn.Parameter(torch.empty(1 + history.length, width).normal_(std=0.1))
        if self.ages_column:
            self.gap_before, self.gap_to_request = (nn.Embedding(_BUCKETS, width) for _ in range(2))
            for table in (self.gap_before, self.gap_to_request):
                nn.init.zeros_(table.weight)
            self.register_buffer("gap_edges", 2 ** torch.arange(_BUCKETS - 2), persistent=False)
        self.dropout = Dropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, tables: nn.ModuleDict, batch: Batch) -> Tensor:
        """[N, w]: the state that each row reads. Raises KeyError with the missing column."""
        packed = PACKED_HISTORY in batch
        values = [self._values(part, batch, packed) for part in self.parts]
        lengths_P = (values[0] != PADDING).sum(1)
        seen_N = batch[PACKED_SEEN] if packed else lengths_P
        rows_N = batch[PACKED_ROW] if packed else torch.arange(lengths_P.shape[0], device=lengths_P.device)
        longest = self.history.length if torch.compiler.is_exporting() else _largest(seen_N)
        alignment = Alignment.build(values[0].shape[1], lengths_P, longest)
        x_PSw = self._tokens(tables, [alignment.align(column) for column in values]) + self.position_Sw[: longest + 1]
        if self.ages_column:
            known_P1 = self._with_known_facts(lengths_P[:, None])
            x_PSw = x_PSw + self.gap_before(self._gaps_before(batch, packed, alignment, known_P1))
        x_PSw = self.dropout(x_PSw)
        for block in self.blocks[:-1]:
            x_PSw = block(x_PSw)
        states_Nw = self.norm(self.blocks[-1](x_PSw, rows_N * (longest + 1) + seen_N))
        if self.ages_column:
            states_Nw = states_Nw + self.gap_to_request(self._gaps_to_request(batch, seen_N, known_P1[rows_N, 0]))
        return states_Nw

    def _values(self, part: TokenPart, batch: Batch, packed: bool) -> Tensor:
        """[P, L] or [P, L, V]. Features of packed histories are in the same columns as those of other histories."""
        if part.column == self.actions_column:
            return self._actions(batch, packed)
        return column_of(batch, PACKED_HISTORY if packed and part.column == self.history.column else part.column)

    def _actions(self, batch: Batch, packed: bool) -> Tensor:
        """[P, L] actions of the items: unknown if the batch has none, and in training in some histories."""
        items_PL = self._values(self.parts[0], batch, packed)
        unknown_PL = (items_PL != PADDING) * DEFAULT
        actions_PL = batch.get(PACKED_ACTIONS if packed else str(self.actions_column), unknown_PL)
        if not self.training:
            return actions_PL
        return torch.where(self._with_known_facts(items_PL), actions_PL, unknown_PL)

    def _tokens(self, tables: nn.ModuleDict, values: list[Tensor]) -> Tensor:
        """[P, S, w] from the aligned columns: the sum of the parts, scaled to components of about unit variance.

        The start token has padding in every part.
        """
        if self.training and self.history_dropout:
            hidden_PS = torch.rand(values[0].shape, device=values[0].device) < self.history_dropout
            values = [hide_positions(column, hidden_PS) for column in values]
        item_PSw, *features = (
            project(_embed(tables[part.table], column))
            for project, part, column in zip(self.projections, self.parts, values, strict=True)
        )
        return sum(features, item_PSw) * math.sqrt(self.length)

    def _with_known_facts(self, rows: Tensor) -> Tensor:
        """[P, 1] bool: the histories (`rows`: [P, any]) whose ages or actions the model reads. In training some are hidden."""
        known_P1 = torch.ones_like(rows[:, :1], dtype=torch.bool)
        return torch.rand_like(known_P1, dtype=torch.float32) >= UNKNOWN_SHARE if self.training else known_P1

    def _gaps_before(self, batch: Batch, packed: bool, alignment: "Alignment", known_P1: Tensor) -> Tensor:
        """[P, S] bucket of the time between each item and the item before it. The first item has no item before it."""
        assert self.ages_column is not None
        ages_PL = batch.get(PACKED_AGES if packed else self.ages_column)
        if ages_PL is None:
            return torch.zeros_like(alignment.absent_PS, dtype=torch.int64)
        ages_PS = alignment.align(ages_PL, absent=UNKNOWN_AGE)
        buckets_PS = self._bucket(ages_PS[:, :-1] - ages_PS[:, 1:])
        known_PS = (ages_PS[:, :-1] > UNKNOWN_AGE) & (ages_PS[:, 1:] > UNKNOWN_AGE) & known_P1
        return F.pad(buckets_PS.masked_fill(~known_PS, _UNKNOWN), (1, 0), value=_UNKNOWN)

    def _gaps_to_request(self, batch: Batch, seen_N: Tensor, known_N: Tensor) -> Tensor:
        """[N] bucket of the time from the newest item that a row sees to its request."""
        ages_NL = batch.get(str(self.ages_column))
        if ages_NL is None:
            return torch.zeros_like(seen_N)
        newest_N = ages_NL[:, -1]
        return self._bucket(newest_N).masked_fill(~(known_N & (seen_N > 0) & (newest_N > UNKNOWN_AGE)), _UNKNOWN)

    def _bucket(self, gaps: Tensor) -> Tensor:
        """1 + the number of binary digits of a gap in seconds."""
        edges: Tensor = self.gap_edges  # type: ignore[assignment]
        return 1 + torch.bucketize(gaps.contiguous(), edges, right=True)


class Block(nn.Module):
    """Pre-norm transformer block: x += attention(norm(x)), x += feed_forward(norm(x))."""

    def __init__(self, settings: TransformerSettings) -> None:
        super().__init__()
        width, hidden = settings.width, settings.feed_forward * settings.width
        self.heads = settings.heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        # Without bias: attention does not depend on that of the keys, so Adam would move it by rounding errors only.
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = Dropout(settings.dropout)

    def forward(self, x_PSw: Tensor, read_N: Tensor | None = None) -> Tensor:
        """[P, S, w], or only the states at places `read_N` of the flattened [P * S] states: [N, w]."""
        rows, tokens, width = x_PSw.shape
        # Three views: the gradient of one view with 5 dimensions would be copied twice.
        parts = self.queries_keys_values(self.attention_norm(x_PSw)).split(width, dim=2)
        shape = (rows, tokens, self.heads, width // self.heads)
        queries, keys, values = (part.view(shape).transpose(1, 2) for part in parts)  # [P, h, S, w / h] each
        attended_PhSw = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        attended = attended_PhSw.transpose(1, 2).reshape(rows, tokens, width)
        x = x_PSw
        if read_N is not None:
            # embedding() adds gradients in a fixed order, indexing does not (model/loss/objective.py, vectors_of).
            x, attended = (F.embedding(read_N, states.reshape(-1, width)) for states in (x, attended))
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Dropout(nn.Module):
    """Dropout by one random byte per number, so the probability is a multiple of 1/256.

    torch draws a 32-bit number for each, one after the other: a seventh of the time of a step of this tower.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.dropped = min(round(256 * chance), 255)

    def forward(self, values: Tensor) -> Tensor:  # noqa: D102
        if not (self.training and self.dropped):
            return values
        words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64, device=values.device).random_(-(2**63), None)
        random_bytes = words.view(torch.uint8)[: values.numel()].view(values.shape)
        kept = (random_bytes >= self.dropped).to(values.dtype)
        return values * kept.mul_(256 / (256 - self.dropped))


class Alignment(NamedTuple):
    """Where the items of left-padded histories [P, L] are behind a start token: [P, S]."""

    places_PS: Tensor  # The place in the history, 0 where there is no item.
    absent_PS: Tensor  # The start token, and tokens behind the last item.

    @classmethod
    def build(cls, history_length: int, lengths_P: Tensor, longest: int) -> "Alignment":
        """`lengths_P`: items of each history. Keeps the oldest `longest` items."""
        item_S = torch.arange(-1, longest, device=lengths_P.device)
        absent_PS = (item_S < 0) | (item_S >= lengths_P[:, None])
        return cls((item_S + history_length - lengths_P[:, None]).masked_fill(absent_PS, 0), absent_PS)

    def align(self, values: Tensor, absent: int = PADDING) -> Tensor:
        """[P, L] -> [P, S], or [P, L, V] -> [P, S, V]. `absent`: the value of tokens without an item."""
        places, missing = self
        if values.dim() == 3:
            places, missing = places[..., None].expand(-1, -1, values.shape[2]), missing[..., None]
        return values.gather(1, places).masked_fill(missing, absent)


def _embed(table: nn.Module, values: Tensor) -> Tensor:
    """[P, S, e] of values [P, S], or the mean of the values' embeddings of [P, S, V]."""
    if values.dim() == 2:
        return table(values)
    rows, tokens, _ = values.shape
    return mean_of_values(table, values.flatten(0, 1)).unflatten(0, (rows, tokens))


def _largest(numbers_N: Tensor) -> int:
    return int(numbers_N.max()) if len(numbers_N) else 0
