"""Features as vectors: embedding tables, and how each kind of feature reads them.

Shapes: B rows, L history length, V values of a multi-valued feature, e embedding length.
"""

import math
from collections.abc import Iterator, Sequence

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
    MultiCategoricalFeature,
    NumericFeature,
)

Batch = dict[str, Tensor]


def column_of(batch: Batch, column: str) -> Tensor:
    """A column of a batch; a missing one is an error that names it and what there is."""
    try:
        return batch[column]
    except KeyError:
        raise KeyError(f"the batch lacks column {column!r}; it has {', '.join(sorted(batch))}") from None


def history_column(column: str) -> str:
    """Where a batch holds item column `column` of every item in the history, [B, L] or [B, L, V]."""
    return f"history_{column}"


def lookup_column(feature: Feature) -> str:
    """The column that holds a feature's rows of its embedding table: for ids not always the index itself."""
    return feature.table_column if isinstance(feature, IdFeature) else feature.column


def rows_of(feature: Feature) -> int:
    """Rows of a feature's embedding table."""
    return feature.table_size if isinstance(feature, IdFeature) else feature.size  # type: ignore[union-attr]


FARTHEST = 1e6  # standard deviations from the mean
HISTORY = "history"  # The table of items in histories, where that is another than the items'.


def table_name(feature: Feature) -> str:
    """Features of one vocabulary share one table; a bucket has no vocabulary and keeps its own."""
    name = feature.column if isinstance(feature, BucketFeature) else feature.vocabulary  # type: ignore[union-attr]
    return name.replace(".", "/")  # Dots separate modules in torch's parameter names.


class EmbeddingTables(nn.ModuleDict):
    """All tables of a model, by name. Row 0 is padding and stays zero; row 1 is the default."""

    def __init__(
        self,
        features: Sequence[Feature],
        schema: FeatureSchema,
        config: ModelConfig,
        sparse_rows: int | None,
        sharded_rows: int | None,
    ) -> None:
        """Of the features that are embedded, and of the history where it has a table of its own.

        `sparse_rows`: tables with at least so many rows get sparse gradients; None: none do.
        `sharded_rows`: those with at least so many are held in shares by the ranks, where there are several; None: none.
        """
        super().__init__()
        self._sparse_rows, self._sharded_rows = sparse_rows, sharded_rows if world_size() > 1 else None
        for feature in features:
            if not isinstance(feature, NumericFeature):
                dim = config.embedding_dim if isinstance(feature, IdFeature) else config.small_embedding_dim
                self._add(table_name(feature), rows_of(feature), dim, feature.name)
        if schema.history and not config.share_history:
            self._add(HISTORY, schema.item_id.table_size, config.embedding_dim, schema.history.name)

    def _add(self, name: str, rows: int, dim: int, feature: str) -> None:
        if name in self:
            shape = (self[name].num_embeddings, self[name].embedding_dim)
            if shape != (rows, dim):
                raise ValueError(
                    f"feature {feature} wants table {name} of {(rows, dim)}, another feature made it {shape}"
                )
            return
        if self._sharded_rows is not None and rows >= self._sharded_rows:
            self[name] = table = ShardedEmbedding(rows, dim)
            fill(table.share, _initial_rows(rows, dim))
            return
        sparse = self._sparse_rows is not None and rows >= self._sparse_rows
        weight = torch.empty(rows, dim)
        for part, piece in zip(pieces_of(rows), _initial_rows(rows, dim)):
            weight[part] = piece
        kind = nn.Embedding if world_size() == 1 else ReplicatedEmbedding
        self[name] = kind.from_pretrained(weight, freeze=False, padding_idx=PADDING, sparse=sparse)


def _initial_rows(rows: int, dim: int) -> Iterator[Tensor]:
    """What a new table begins with, a piece at a time: the same whether a rank keeps all of it or its share."""
    for part in pieces_of(rows):
        # Its constructor draws too, so a table of one piece is what it was as an nn.Embedding with the same seed.
        piece = nn.Embedding(part.stop - part.start, dim).weight.detach()
        # Rows of about unit length: torch's default N(0, 1) would drown the numeric features in the first MLP layer.
        nn.init.normal_(piece, std=1 / math.sqrt(dim))
        if part.start == 0:
            piece[PADDING] = 0
        yield piece


def scaled_age(feature: AgeFeature | NumericFeature, batch: Batch) -> Tensor:
    """[B, 1] of the age of a row."""
    days_B = column_of(batch, feature.column)
    if isinstance(feature, NumericFeature):
        return _standardised(days_B, feature)
    return (days_B.clamp(0, feature.days).log1p() / math.log1p(feature.days)).float().unsqueeze(1)


def _standardised(values_B: Tensor, feature: NumericFeature) -> Tensor:
    """[B, 1]. The deviation is the first night's: a later number may lie so far from it that float32 overflows."""
    return ((values_B - feature.mean) / (feature.std or 1.0)).clamp(-FARTHEST, FARTHEST).float().unsqueeze(1)


def embed_feature(tables: EmbeddingTables, feature: Feature, batch: Batch) -> Tensor:
    """[B, e] of one feature: [B, 1] standardised for a numeric one, else its embedding or their weighted mean."""
    values = column_of(batch, lookup_column(feature))
    if isinstance(feature, NumericFeature):
        return _standardised(values, feature)
    table = tables[table_name(feature)]
    if isinstance(feature, MultiCategoricalFeature):
        weights = column_of(batch, feature.weights_column) if feature.weights_column else None
        return mean_of_values(table, values, weights)
    return table(values)


def mean_of_values(table: nn.Module, values_BV: Tensor, weights_BV: Tensor | None = None) -> Tensor:
    """[B, e]: mean of the values' embeddings, padding left out, optionally weighted; zero where there are none."""
    present_BV = (values_BV != PADDING).float()
    weights_BV = present_BV if weights_BV is None else present_BV * weights_BV
    total_B1 = weights_BV.sum(1, keepdim=True)
    shares_BV = weights_BV / torch.where(total_B1 > 0, total_B1, 1.0)
    return torch.einsum("bv,bve->be", shares_BV, table(values_BV))


class HistoryPooling(nn.Module):
    """[B, L] items of a history, newest last, to one vector [B, e]; zero where it is empty.

    mean: every item alike. decay: the newest weighs 1, each one before it `history_decay` times the next (position, not
    time). attention: softmax over the items of v tanh(W h + p), h the item, p its position (Bahdanau et al., ICLR 2015, with
    a query v that is learned: what is recalled is not known yet).
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
        # A row without history: equal weights of zero vectors.
        weights_BL = scores_BL.float().masked_fill(absent_BL, -1e30).softmax(1)
        return torch.einsum("bl,ble->be", weights_BL.to(items_BLe.dtype), items_BLe)

    def fixed_weights(self, values: Tensor) -> Tensor | None:
        """[B, L * V] weights of values [B, L] or [B, L, V] by position alone; None: all alike."""
        if self.kind != "decay":
            return None
        decay_L: Tensor = self.decay_L  # type: ignore[assignment]
        shape = (1, len(decay_L)) + (1,) * (values.dim() - 2)
        return decay_L.reshape(shape).expand(values.shape).flatten(1)


def embedded_length(features: Sequence[Feature], config: ModelConfig) -> int:
    """Length of the concatenated vectors of some features."""
    lengths = {"numeric": 1, "id": config.embedding_dim}
    return sum(lengths.get(feature.kind, config.small_embedding_dim) for feature in features)


def drop_ids(indices_B: Tensor, chance: float) -> Tensor:
    """Some ids replaced by the default one, so that its row learns to stand for users and items never seen."""
    dropped_B = (torch.rand(indices_B.shape) < chance) & (indices_B != PADDING)
    return indices_B.masked_fill(dropped_B, DEFAULT)
