"""The feature schema: all that the model room knows of the features (docs/tables.md)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipelines.contract.strict import StrictModel


class ItemRows(StrictModel):
    """Which row of the embedding table is an item's: a column of `item_features`, and how many rows there are.

    `hashed`: one of a bucket's, in a history too. Else its own index, but the default row until it has a first positive:
    its own would learn from being a negative alone.
    """

    column: str
    size: PositiveInt
    hashed: bool


class IdFeature(StrictModel):
    """An entity's own index, with a table of `embedding_dim`.

    `rows`: of items; without it a row is the index itself. An item's index stays its own whatever its row; a user's index is
    its bucket, where users are hashed.
    """

    kind: Literal["id"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    rows: ItemRows | None = None

    @property
    def hashed(self) -> bool:
        """Whether items share rows."""
        return self.rows is not None and self.rows.hashed

    @property
    def table_column(self) -> str:
        """The column that picks a row of the embedding table."""
        return self.rows.column if self.rows else self.column

    @property
    def table_size(self) -> int:
        """Rows of the embedding table."""
        return self.rows.size if self.rows else self.size


class CategoricalFeature(StrictModel):
    """One value of a vocabulary."""

    kind: Literal["categorical"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt


class MultiCategoricalFeature(StrictModel):
    """Up to `length` values of a vocabulary, 0-padded, optionally weighted."""

    kind: Literal["multi_categorical"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    length: PositiveInt
    weights_column: str | None = None


class NumericFeature(StrictModel):
    """A number, standardised with the mean and std of the window."""

    kind: Literal["numeric"]
    name: str
    column: str
    mean: float
    std: float


class BucketFeature(StrictModel):
    """A number that the pipeline has bucketised."""

    kind: Literal["bucket"]
    name: str
    column: str
    size: PositiveInt


class AgeFeature(StrictModel):
    """Days from the event to the end of the night, read as log(1 + age) / log(1 + `days`): from 0 to 1, and 0 when serving.

    `days`: the oldest that counts, frozen on the first night; older events count as old as that.
    """

    kind: Literal["age"]
    name: str
    column: str
    days: PositiveFloat


class HistoryFeature(StrictModel):
    """The user's last `length` positives, 0-padded on the left."""

    kind: Literal["history"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    length: PositiveInt


Feature = Annotated[
    IdFeature | CategoricalFeature | MultiCategoricalFeature | NumericFeature | BucketFeature,
    Field(discriminator="kind"),
]


class FeatureSchema(StrictModel):
    """Features of both sides. `history` and `example_age` are None when switched off."""

    version: Literal[1]
    user: list[Feature]
    item: list[Feature]
    history: HistoryFeature | None = None
    # A number: models of earlier versions read the days as they are.
    example_age: Annotated[AgeFeature | NumericFeature, Field(discriminator="kind")] | None = None

    @model_validator(mode="after")
    def _check(self) -> "FeatureSchema":
        ids = [feature for feature in self.item if isinstance(feature, IdFeature)]
        if len(ids) != 1:
            raise ValueError(f"the item side needs exactly one feature of kind id, found {len(ids)}")
        if self.history and (self.history.vocabulary, self.history.size) != (ids[0].vocabulary, ids[0].size):
            raise ValueError(
                f"history has vocabulary {self.history.vocabulary} of {self.history.size}, "
                f"the items {ids[0].vocabulary} of {ids[0].size}: both must come from the same night"
            )
        for side, columns in (("user", self.user_columns), ("item", self.item_columns)):
            twice = sorted({column for column in columns if columns.count(column) > 1})
            if twice:
                raise ValueError(f"columns used by two features of the {side} side: {', '.join(twice)}")
        return self

    def without(self, names: Sequence[str]) -> "FeatureSchema":
        """The schema less the features of these names, on both sides; `history` and `example_age` are names too.

        Raises ValueError for a name that nothing has, and for the item's id, which everything is keyed by.
        """
        extras = [extra for extra in (self.history, self.example_age) if extra]
        there = {feature.name for feature in (*self.user, *self.item, *extras)} - {self.item_id.name}
        if unknown := sorted(set(names) - there):
            raise ValueError(
                f"model.leave_out: no feature {', '.join(unknown)} can be left out, only {', '.join(sorted(there))}"
            )
        return FeatureSchema(
            version=self.version,
            user=[feature for feature in self.user if feature.name not in names],
            item=[feature for feature in self.item if feature.name not in names],
            history=None if self.history and self.history.name in names else self.history,
            example_age=None if self.example_age and self.example_age.name in names else self.example_age,
        )

    @property
    def item_id(self) -> IdFeature:
        """The item's own index: what positives, negatives and histories are written in."""
        return next(feature for feature in self.item if isinstance(feature, IdFeature))

    @property
    def user_columns(self) -> list[str]:
        """Columns of `samples` that the user tower reads: features, history, example age."""
        columns = columns_of(self.user)
        columns += [self.history.column] if self.history else []
        return columns + ([self.example_age.column] if self.example_age else [])

    @property
    def item_columns(self) -> list[str]:
        """Columns of `item_features` that the item tower reads."""
        return columns_of(self.item)


def columns_of(features: list[Feature]) -> list[str]:
    """The columns of some features, weights included, in order."""
    columns = []
    for feature in features:
        columns.append(feature.column)
        if isinstance(feature, MultiCategoricalFeature) and feature.weights_column:
            columns.append(feature.weights_column)
        if isinstance(feature, IdFeature) and feature.rows:
            columns.append(feature.rows.column)
    return columns
