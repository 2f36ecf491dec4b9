"""Embeds features: the embedding tables, and the conversion of each kind of feature to a vector.

Shapes: B rows, L history length, V values of a multi-valued feature, e embedding length.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.distributed.collectives import world_size
from model.distributed.replicated_embedding import ReplicatedEmbedding
from model.distributed.sharded_embedding import ShardedEmbedding, fill, pieces_of
from pipelines.contract.indices import DEFAULT, PADDING
from pipelines.contract.schema import (
    AgeFeature,
    BucketFeature,
    Feature,
    FeatureSchema,
    IdFeature,
    IndexedFeature,
    MultiCategoricalFeature,
    NumericFeature,
    VectorFeature,
    columns_of,
)

Batch = dict[str, Tensor]


def column_of(batch: Batch, column: str) -> Tensor:
    """A column of a batch. Raises KeyError with the missing column and the columns of the batch."""
    try:
        return batch[column]
    except KeyError:
        raise KeyError(f"the batch lacks column {column!r}; it has {', '.join(sorted(batch))}") from None


def history_column(column: str) -> str:
    """The batch column with item column `column` for each item of the history, [B, L] or [B, L, V]."""
    return f"history_{column}"


def lookup_column(feature: Feature) -> str:
    """The column with a feature's rows of its embedding table. For some ids this differs from the index column."""
    return feature.table_column if isinstance(feature, IdFeature) else feature.column


def rows_of(feature: Feature) -> int:
    """Number of rows of a feature's embedding table."""
    return feature.table_size if isinstance(feature, IdFeature) else feature.size  # type: ignore[union-attr]


FARTHEST = (
    1e6  # Clipping of standardised numbers, in standard deviations from the mean, and of the numbers of a vector.
)
HISTORY = "history"  # Name of the table of history items, if it is separate from the item table.
# Rows start with about unit length; those of ids are short, unless a transformer reads them. The row of an id that is trained
# a few times keeps much of its random start, and would drown what features and a pooled history say: docs/ablations.md.
UNIT_LENGTH, SHORT_LENGTH = 1.0, 0.1


def has_table(feature: Feature) -> TypeGuard[IndexedFeature]:
    """Whether a feature is an index of an embedding table. Numbers and vectors are not."""
    return not isinstance(feature, NumericFeature | VectorFeature)


def table_name(feature: Feature) -> str:
    """The table of a feature. Features of one vocabulary share a table. A bucket has no vocabulary and its own table."""
    name = feature.column if isinstance(feature, BucketFeature) else feature.vocabulary  # type: ignore[union-attr]
    return name.replace(".", "/")  # Dots separate modules in torch's parameter names.


class EmbeddingTables(nn.ModuleDict):
    """All embedding tables of a model, by name. Row 0 is padding and stays zero; row 1 is the default."""

    def __init__(
        self,
        features: Sequence[Feature],
        schema: FeatureSchema,
        config: ModelConfig,
        sparse_rows: int | None,
        sharded_rows: int | None,
        id_length: float,
    ) -> None:
        """Create tables for the embedded features, and for the history if it has a separate table.

        `sparse_rows`: tables with at least this many rows get sparse gradients; None: no tables.
        `sharded_rows`: tables with at least this many rows are sharded if there are several ranks; None: no tables.
        `id_length`: the length that the rows of ids have at first.
        """
        super().__init__()
        self._sparse_rows, self._sharded_rows = sparse_rows, sharded_rows if world_size() > 1 else None
        for feature in features:
            if has_table(feature):
                is_id = isinstance(feature, IdFeature)
                dim = config.embedding_dim if is_id else config.small_embedding_dim
                length = id_length if is_id else UNIT_LENGTH
                self._add(table_name(feature), rows_of(feature), dim, length, feature.name)
        if schema.history and not config.share_history:
            self._add(HISTORY, schema.item_id.table_size, config.embedding_dim, id_length, schema.history.name)

    def _add(self, name: str, rows: int, dim: int, length: float, feature: str) -> None:
        if name in self:
            shape = (self[name].num_embeddings, self[name].embedding_dim)
            if shape != (rows, dim):
                raise ValueError(
                    f"feature {feature} needs table {name} with shape {(rows, dim)}, another feature created it with {shape}"
                )
            return
        if self._sharded_rows is not None and rows >= self._sharded_rows:
            self[name] = table = ShardedEmbedding(rows, dim)
            fill(table.share, _initial_rows(rows, dim, length))
            return
        sparse = self._sparse_rows is not None and rows >= self._sparse_rows
        weight = torch.empty(rows, dim)
        for part, piece in zip(pieces_of(rows), _initial_rows(rows, dim, length)):
            weight[part] = piece
        kind = nn.Embedding if world_size() == 1 else ReplicatedEmbedding
        self[name] = kind.from_pretrained(weight, freeze=False, padding_idx=PADDING, sparse=sparse)


def _initial_rows(rows: int, dim: int, length: float) -> Iterator[Tensor]:
    """Initial values of a new table, in pieces. The same whether a rank keeps all rows or only its shard."""
    for part in pieces_of(rows):
        # nn.Embedding also draws from the generator: a table of one piece equals an nn.Embedding with the same seed.
        piece = nn.Embedding(part.stop - part.start, dim).weight.detach()
        # torch's default N(0, 1) would dominate the numeric features in the first MLP layer.
        nn.init.normal_(piece, std=length / math.sqrt(dim))
        if part.start == 0:
            piece[PADDING] = 0
        yield piece


def scaled_age(feature: AgeFeature | NumericFeature, batch: Batch) -> Tensor:
    """[B, 1] scaled age of each row."""
    days_B = column_of(batch, feature.column)
    if isinstance(feature, NumericFeature):
        return _standardised(days_B, feature)
    return (days_B.clamp(0, feature.days).log1p() / math.log1p(feature.days)).float().unsqueeze(1)


def _standardised(values_B: Tensor, feature: NumericFeature) -> Tensor:
    """[B, 1]. Mean and std are from the first night, so later numbers are clipped: float32 could overflow."""
    return ((values_B - feature.mean) / (feature.std or 1.0)).clamp(-FARTHEST, FARTHEST).float().unsqueeze(1)


def embed_feature(tables: EmbeddingTables, feature: Feature, batch: Batch) -> Tensor:
    """[B, e] of one feature: its embedding or the weighted mean of its embeddings. Numeric features: [B, 1], standardised."""
    values = column_of(batch, lookup_column(feature))
    if isinstance(feature, NumericFeature):
        return _standardised(values, feature)
    table = tables[table_name(feature)]
    if isinstance(feature, MultiCategoricalFeature):
        weights = column_of(batch, feature.weights_column) if feature.weights_column else None
        return mean_of_values(table, values, weights)
    return table(values)


def mean_of_values(table: nn.Module, values_BV: Tensor, weights_BV: Tensor | None = None) -> Tensor:
    """[B, e]: mean of the values' embeddings without padding, optionally weighted. Zero if there are no values."""
    present_BV = (values_BV != PADDING).float()
    weights_BV = present_BV if weights_BV is None else present_BV * weights_BV
    total_B1 = weights_BV.sum(1, keepdim=True)
    shares_BV = weights_BV / torch.where(total_B1 > 0, total_B1, 1.0)
    return torch.einsum("bv,bve->be", shares_BV, table(values_BV))


class Projection(nn.Module):
    """Projects a vector [B, length] to [B, width] by a linear layer, with dropout in training. Does not change the input."""

    def __init__(self, feature: VectorFeature, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(feature.length, embedded_length([feature], config))
        self.dropout = nn.Dropout(feature.dropout)

    def forward(self, vectors_BN: Tensor) -> Tensor:  # noqa: D102
        return self.dropout(self.linear(vectors_BN.clamp(-FARTHEST, FARTHEST)))


class HistoryPooling(nn.Module):
    """Pools the items of a history [B, L], newest last, to one vector [B, e]. Zero if the history is empty.

    mean: equal weights. decay: the newest item has weight 1, each older item `history_decay` times the weight of the next
    newer one (by position, not by time). attention: softmax over the items of v tanh(W h + p), where h is the item and p
    its position (Bahdanau et al., ICLR 2015). The query v is a learned parameter, because the target item is unknown.
    """

    def __init__(self, length: int, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.history_pooling
        if self.kind == "decay":
            steps_L = torch.arange(length - 1, -1, -1)
            self.register_buffer("decay_L", config.history_decay ** steps_L.float(), persistent=False)
        elif self.kind == "attention":
            self.position_Le = nn.Parameter(torch.zeros(length, config.embedding_dim))
            self.mix = nn.Linear(config.embedding_dim, config.embedding_dim)
            self.query = nn.Linear(config.embedding_dim, 1, bias=False)

    def forward(self, table: nn.Module, history_BL: Tensor) -> Tensor:  # noqa: D102
        if self.kind != "attention":
            return mean_of_values(table, history_BL, self.fixed_weights(history_BL))
        items_BLe = table(history_BL)
        scores_BL = self.query(torch.tanh(self.mix(items_BLe) + self.position_Le)).squeeze(2)
        absent_BL = history_BL == PADDING
        # A row without history gets equal weights of zero vectors.
        weights_BL = scores_BL.float().masked_fill(absent_BL, -1e30).softmax(1)
        return torch.einsum("bl,ble->be", weights_BL.to(items_BLe.dtype), items_BLe)

    def fixed_weights(self, values: Tensor) -> Tensor | None:
        """[B, L * V] weights of values [B, L] or [B, L, V] by position; None: equal weights."""
        if self.kind != "decay":
            return None
        decay_L: Tensor = self.decay_L  # type: ignore[assignment]
        shape = (1, len(decay_L)) + (1,) * (values.dim() - 2)
        return decay_L.reshape(shape).expand(values.shape).flatten(1)


def hide_positions(values: Tensor, hidden_BL: Tensor) -> Tensor:
    """Values of history items, [B, L] or [B, L, V], with padding at the hidden positions."""
    return values.masked_fill(hidden_BL.reshape(hidden_BL.shape + (1,) * (values.dim() - 2)), PADDING)


def embedded_length(features: Sequence[Feature], config: ModelConfig) -> int:
    """Length of the concatenated vectors of the given features."""
    lengths = {"numeric": 1, "id": config.embedding_dim}
    return sum(
        getattr(feature, "width", None) or lengths.get(feature.kind, config.small_embedding_dim) for feature in features
    )


def drop_context(features: Sequence[Feature], batch: Batch, chance: float) -> Batch:
    """Replace all features of the request by their defaults in random rows, as `drop_ids` does for ids.

    A query without a request has these defaults, and a row of a log rarely does.
    """
    first = column_of(batch, features[0].column)
    dropped_B = torch.rand(len(first), device=first.device) < chance
    changed = dict(batch)
    for feature in features:
        for column in columns_of([feature]):
            values = column_of(batch, column)
            default = feature.mean if isinstance(feature, NumericFeature) else DEFAULT
            is_list = values.dim() > 1  # Values with their weights, or a vector: all 0.
            mask = dropped_B[:, None] if is_list else dropped_B
            changed[column] = values.masked_fill(mask, PADDING if is_list else default)
    return changed


def drop_ids(indices_B: Tensor, chance: float) -> Tensor:
    """Replace random ids by the default id, so that its row learns to represent new users and items."""
    return default_ids(indices_B, torch.rand(indices_B.shape, device=indices_B.device) < chance)


def default_ids(indices_B: Tensor, rows_B: Tensor) -> Tensor:
    """The ids with the default id in the given rows; padding stays."""
    return indices_B.masked_fill(rows_B & (indices_B != PADDING), DEFAULT)
