"""The two towers. Each sees its own side only, so that items can be embedded once and searched.

Shapes: B users, N items, L history length, V values a feature, e embedding length, d vector length.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.features import (
    Batch,
    EmbeddingTables,
    column_of,
    drop_ids,
    embed_feature,
    embedded_length,
    history_column,
    mean_of_values,
    table_name,
)
from model.schema import CategoricalFeature, Feature, FeatureSchema, IdFeature, MultiCategoricalFeature


class Dssm(nn.Sequential):
    """[B, inputs] -> [B, d] of unit length: MLP with ReLU (Huang et al., CIKM 2013)."""

    def __init__(self, inputs: int, config: ModelConfig) -> None:
        layers: list[nn.Module] = []
        for width in config.hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, config.dim))

    def forward(self, inputs_BI: Tensor) -> Tensor:  # noqa: D102
        # In float32 under autocast too: components of bfloat16 would leave a length of 1 only to a percent.
        return F.normalize(super().forward(inputs_BI).to(torch.float32), dim=1)


class TwoTower(nn.Module):
    """User and item vectors of unit length; their dot product is the score."""

    def __init__(self, schema: FeatureSchema, config: ModelConfig, sparse_rows: int | None = None) -> None:
        """`sparse_rows`: embedding tables with at least so many rows get sparse gradients (training only)."""
        super().__init__()
        self.schema, self.config = schema, config
        self.history_features = _history_features(schema, config)
        self.tables = EmbeddingTables(schema, config, sparse_rows)
        user_inputs = embedded_length(schema.user, config) + (1 if schema.example_age else 0)
        if schema.history:
            pooled = [feature for feature in self.history_features if not isinstance(feature, IdFeature)]
            user_inputs += config.embedding_dim + embedded_length(pooled, config)
        self.user_tower = Dssm(user_inputs, config)
        self.item_tower = Dssm(embedded_length(schema.item, config), config)

    def user_vectors(self, batch: Batch) -> Tensor:
        """[B, d] from the schema's user columns: indices int64, numbers float32, lists [B, length].

        `history_features` also need columns `history_COLUMN` of [B, L] or [B, L, V], which a Catalogue gathers.
        Raises KeyError naming a missing column.
        """
        parts = [self._embed(feature, batch) for feature in self.schema.user]
        if self.schema.history:
            shared = table_name(self.schema.item_id) if self.config.share_history else "history"
            hashed = self.schema.item_id.hashed
            column = history_column(hashed.column) if hashed else self.schema.history.column
            parts.append(mean_of_values(self.tables[shared], column_of(batch, column)))
            for feature in self.history_features:
                if not isinstance(feature, IdFeature):
                    values = column_of(batch, history_column(feature.column))
                    parts.append(mean_of_values(self.tables[table_name(feature)], values.flatten(1)))
        if self.schema.example_age:
            parts.append(embed_feature(self.tables, self.schema.example_age, batch))
        return self.user_tower(torch.cat(parts, dim=1))

    def item_vectors(self, batch: Batch) -> Tensor:
        """[N, d] from the schema's item columns. Raises KeyError naming a missing column."""
        return self.item_tower(torch.cat([self._embed(feature, batch) for feature in self.schema.item], dim=1))

    def _embed(self, feature: Feature, batch: Batch) -> Tensor:
        if self.training and self.config.id_dropout and isinstance(feature, IdFeature):
            column = feature.table_column
            batch = {**batch, column: drop_ids(column_of(batch, column), self.config.id_dropout)}
        return embed_feature(self.tables, feature, batch)


def _history_features(schema: FeatureSchema, config: ModelConfig) -> list[Feature]:
    """What a catalogue gathers for the items of a history: features that are pooled over it, and the rows of hashed ids.

    Raises ValueError for a feature that cannot be pooled.
    """
    by_name = {feature.name: feature for feature in schema.item}
    for name in config.history_features:
        if not schema.history or not isinstance(by_name.get(name), CategoricalFeature | MultiCategoricalFeature):
            raise ValueError(
                f"history_features: {name!r} is not a categorical or multi_categorical item feature of a schema with a "
                f"history; the item features are {', '.join(by_name)}"
            )
    ids: list[Feature] = [schema.item_id] if schema.history and schema.item_id.hashed else []
    return ids + [by_name[name] for name in config.history_features]
