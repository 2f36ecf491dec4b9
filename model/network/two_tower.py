"""The two-tower model: features to fields, fields to vectors. Each tower sees only the features of its side.

Shapes: B users, N items, L history length, V values of a feature, e embedding length, d vector length.
"""

from collections.abc import Iterator
from copy import copy
from typing import Literal

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.embeddings import (
    HISTORY,
    SHORT_LENGTH,
    UNIT_LENGTH,
    Batch,
    EmbeddingTables,
    HistoryPooling,
    Projection,
    column_of,
    default_ids,
    drop_context,
    drop_ids,
    embed_feature,
    embedded_length,
    has_table,
    hide_positions,
    history_column,
    lookup_column,
    mean_of_values,
    scaled_age,
    table_name,
)
from model.network.item_item import ItemItemPart
from model.network.sequence_encoder import TokenPart
from model.network.towers import Field, build_history_encoder, build_towers, fields_read, settings_of
from pipelines.contract.schema import (
    CategoricalFeature,
    Feature,
    FeatureSchema,
    HistoryFeature,
    IdFeature,
    MultiCategoricalFeature,
    VectorFeature,
)


class TwoTower(nn.Module):
    """Computes user and item vectors. Their dot product is the score.

    In training they have unit length. For serving, `load_checkpoint` adds an item-item part, and that of a release the recency
    prior: vectors are then [tower (d), item-item part (r), prior (1)].
    """

    def __init__(
        self,
        schema: FeatureSchema,
        config: ModelConfig,
        sparse_rows: int | None = None,
        sharded_rows: int | None = None,
    ) -> None:
        """`sparse_rows`, `sharded_rows`: see EmbeddingTables; only training sets them."""
        super().__init__()
        self.schema, self.config = schema, config
        self.prior_scale: float | None = None  # Set by load_checkpoint for a release with a recency prior.
        self.item_item: ItemItemPart | None = None  # Set by load_checkpoint if the checkpoint has one.
        self.history_features = _history_features(schema, config)
        self.history_actions = _history_actions(schema, config)
        self.encoder = build_history_encoder(schema.history, self._token_parts(), config)
        self.user_tower, self.item_tower = build_towers(self.user_fields(), self.item_fields(), config)
        read = fields_read(self.item_tower, self.item_fields())
        self.item_features = [feature for feature in schema.item if feature.name in read]
        embedded = [*schema.of_user_tower, *self.item_features, *self.history_features, *self.history_actions]
        id_length = SHORT_LENGTH if self.encoder is None else UNIT_LENGTH
        self.tables = EmbeddingTables(embedded, schema, config, sparse_rows, sharded_rows, id_length)
        pooled = schema.history if self.encoder is None else None
        self.pooling = HistoryPooling(pooled_items(pooled, config), config) if pooled else None
        self.projections = nn.ModuleDict(
            {feature.column: Projection(feature, config) for feature in embedded if isinstance(feature, VectorFeature)}
        )

    def user_fields(self) -> list[Field]:
        """Fields of the user tower: features of user and request, the history, features pooled over the history, example
        age."""
        fields = [self._field(feature) for feature in self.schema.of_user_tower]
        if self.schema.history and self.encoder:
            fields.append(Field(self.schema.history.name, "history", self.encoder.length))
        elif self.schema.history:
            fields.append(Field(self.schema.history.name, "history", self.config.embedding_dim))
            fields += [
                self._field(feature)._replace(name=f"history_{feature.name}", kind="history")
                for feature in self._pooled_features()
            ]
        age = self.schema.example_age
        return fields + ([Field(age.name, age.kind, 1)] if age else [])

    def item_fields(self) -> list[Field]:
        """Fields of the item tower."""
        return [self._field(feature) for feature in self.schema.item]

    def user_inputs(self, batch: Batch) -> list[Tensor]:
        """[B, e] of each of `user_fields`, from the user columns: indices int64, numbers float32, lists [B, length].

        `history_features` also need columns `history_COLUMN` of [B, L] or [B, L, V], which a Catalogue gathers.
        Raises KeyError with the missing column.
        """
        if self.training and self.schema.context and self.config.context_dropout:
            batch = drop_context(self.schema.context, batch, self.config.context_dropout)
        if self.pooling:
            newest = {name: self.pooled_history(batch[name]) for name in self._history_columns() if name in batch}
            batch = self._with_hidden_items({**batch, **newest})
        inputs = [self._embed(feature, batch) for feature in self.schema.of_user_tower]
        if self.encoder:
            inputs.append(self.encoder(self.tables, batch))
        elif self.pooling:
            inputs.append(self.pooling(self.tables[self._history_table()], column_of(batch, self._history_ids())))
            for feature in self._pooled_features():
                values = column_of(batch, history_column(feature.column))
                weights = self.pooling.fixed_weights(values)
                inputs.append(mean_of_values(self.tables[table_name(feature)], values.flatten(1), weights))
        if self.schema.example_age:
            inputs.append(scaled_age(self.schema.example_age, batch))
        return inputs

    def item_inputs(self, batch: Batch) -> list[Tensor]:
        """[N, e] of each field that the item tower reads, from the schema's item columns.

        Raises KeyError with the missing column.
        """
        return [self._embed(feature, batch) for feature in self.item_features]

    def user_vectors(self, batch: Batch) -> Tensor:
        """[B, d] from the columns of `user_inputs`, with the components of the item-item part and the prior, if any."""
        vectors = self.user_tower(self.user_inputs(batch))
        if self.item_item:
            assert self.schema.history is not None
            of_history = self.item_item.users(column_of(batch, self.schema.history.column))
            vectors = torch.cat([vectors, of_history], dim=1)
        return self._with_prior(vectors, self.prior_scale)

    def item_vectors(self, batch: Batch) -> Tensor:
        """[N, d] from the schema's item columns, with the components of the item-item part and the prior, if any.

        The prior's is that of items without recent positives. Raises KeyError with the missing column.
        """
        vectors = self.item_tower(self.item_inputs(batch))
        if self.item_item:
            of_items = self.item_item.items(column_of(batch, self.schema.item_id.table_column))
            vectors = torch.cat([vectors, of_items], dim=1)
        return self._with_prior(vectors, 0.0)

    @property
    def dim(self) -> int:
        """Length of the vectors, with the components of the item-item part and the prior."""
        return sum(self.components.values())

    @property
    def components(self) -> dict[str, int]:
        """The parts of the vectors in their order, and how many components each has."""
        rank = self.item_item.rank if self.item_item else 0
        return {"towers": self.config.dim, "item_item": rank, "prior": int(self.prior_scale is not None)}

    @torch.no_grad()
    def weights(self, users: Batch, items: Batch) -> dict[str, float]:
        """SIDE.NAME -> mean weight of a field or channel over these rows. Empty for towers without such weights."""
        sides = (("user", self.user_tower, self.user_inputs, users), ("item", self.item_tower, self.item_inputs, items))
        return {
            f"{side}.{name}": float(weight)
            for side, tower, inputs, batch in sides
            if hasattr(tower, "mean_weights")
            for name, weight in tower.mean_weights(inputs(batch)).items()  # type: ignore[operator]
        }

    def with_item_item(self, part: ItemItemPart | None) -> "TwoTower":
        """A copy of this model with an item-item part. It shares the tensors of this model."""
        copied = copy(self)
        copied._modules = dict(self._modules)
        copied.item_item = part
        return copied

    def side(self, side: Literal["user", "item"]) -> "TwoTower":
        """A copy of this model with only the modules of one side. It shares the tensors of this model."""
        part = copy(self)
        unread = ("item_tower",) if side == "user" else ("user_tower", "pooling", "encoder")
        part._modules = {name: module for name, module in self._modules.items() if name not in unread}
        part.tables = copy(self.tables)
        names = self._tables_of(side)
        part.tables._modules = {name: table for name, table in self.tables._modules.items() if name in names}
        part.projections = copy(self.projections)
        features = self.schema.of_user_tower if side == "user" else self.item_features
        columns = {feature.column for feature in features}
        part.projections._modules = {name: one for name, one in self.projections._modules.items() if name in columns}
        return part

    def _tables_of(self, side: str) -> set[str]:
        """Names of the embedding tables that a side reads."""
        of_users = [*self.schema.of_user_tower, *self._pooled_features(), *self.history_actions]
        features = of_users if side == "user" else self.item_features
        names = {table_name(feature) for feature in features if has_table(feature)}
        if side == "user" and self.schema.history:
            names.add(self._history_table())
        return names

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters except the embedding tables. A parameter that both towers share comes once."""
        return (parameter for name, parameter in self.named_parameters() if not name.startswith("tables."))

    def _with_prior(self, vectors: Tensor, component: float | None) -> Tensor:
        """Append the component of the recency prior, if there is one (model/serving/recency_prior.py)."""
        if self.prior_scale is None or component is None:
            return vectors
        return torch.nn.functional.pad(vectors, (0, 1), value=component)

    def _field(self, feature: Feature) -> Field:
        return Field(feature.name, feature.kind, embedded_length([feature], self.config))

    def _history_table(self) -> str:
        return table_name(self.schema.item_id) if self.config.share_history else HISTORY

    def _history_ids(self) -> str:
        """The column with the rows of the history table, [B, L]."""
        ids, history = self.schema.item_id, self.schema.history
        assert history is not None
        return history_column(ids.table_column) if ids.hashed else history.column

    def _token_parts(self) -> list[TokenPart]:
        """What a tower can read of each item of the history: the id, then the history features and the action."""
        if self.schema.history is None:
            return []
        parts = [TokenPart(self._history_ids(), self._history_table(), self.config.embedding_dim)]
        columns = [(history_column(feature.column), feature) for feature in self._pooled_features()]
        columns += [(feature.column, feature) for feature in self.history_actions]
        return parts + [
            TokenPart(column, table_name(feature), embedded_length([feature], self.config))
            for column, feature in columns
        ]

    def _pooled_features(self) -> list[Feature]:
        return [feature for feature in self.history_features if not isinstance(feature, IdFeature)]

    def pooled_history(self, history_BL: Tensor) -> Tensor:
        """The newest items of histories, [B, L] or [B, L, V], that are pooled; for an encoder all of them."""
        return history_BL[:, -self.config.history_items :] if self.pooling and self.config.history_items else history_BL

    def _history_columns(self) -> set[str]:
        """The columns of a batch with a value for each item that is pooled."""
        assert self.schema.history is not None
        return {self.schema.history.column, *(history_column(lookup_column(f)) for f in self.history_features)}

    def _with_hidden_items(self, batch: Batch) -> Batch:
        """In training, hide random items of the histories with their features; of random rows everything and the user's id.

        Those rows are new users, which the model then learns to answer (DropoutNet: Volkovs et al., NeurIPS 2017).
        """
        chance, share = self.config.history_dropout, self.config.new_user_share
        if not (self.training and (chance or share)):
            return batch
        assert self.schema.history is not None
        columns = self._history_columns()
        history_BL = column_of(batch, self.schema.history.column)
        hidden_BL, ids = torch.rand(history_BL.shape, device=history_BL.device) < chance, {}
        if share:
            new_B = torch.rand(len(history_BL), device=history_BL.device) < share
            hidden_BL = hidden_BL | new_B[:, None]
            names = (f.table_column for f in self.schema.of_user_tower if isinstance(f, IdFeature))
            ids = {name: default_ids(column_of(batch, name), new_B) for name in names}
        return batch | ids | {name: hide_positions(batch[name], hidden_BL) for name in columns if name in batch}

    def _embed(self, feature: Feature, batch: Batch) -> Tensor:
        if self.training and self.config.id_dropout and isinstance(feature, IdFeature):
            column = feature.table_column
            batch = {**batch, column: drop_ids(column_of(batch, column), self.config.id_dropout)}
        if isinstance(feature, VectorFeature):
            return self.projections[feature.column](column_of(batch, feature.column))
        return embed_feature(self.tables, feature, batch)


def pooled_items(history: HistoryFeature, config: ModelConfig) -> int:
    """How many items of a history are pooled, at most."""
    return min(history.length, config.history_items or history.length)


def _history_features(schema: FeatureSchema, config: ModelConfig) -> list[Feature]:
    """Features that a catalogue gathers for history items: those pooled over the history, and the rows of hashed ids.

    Raises ValueError if a feature cannot be pooled.
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


def _history_actions(schema: FeatureSchema, config: ModelConfig) -> list[Feature]:
    """The actions of history items if the tower reads them, else an empty list."""
    wanted = getattr(settings_of(config.tower, config.settings), "actions", False)
    return [schema.history.actions] if wanted and schema.history and schema.history.actions else []
