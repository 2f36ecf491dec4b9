"""The feature schema: everything that `model` knows about the features (docs/tables.md)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipelines.contract.strict import StrictModel


class ItemRows(StrictModel):
    """Maps an item to a row of the item embedding table, through a column of `item_features`. `size`: number of rows.

    `hashed` true: the row is a hash bucket that items share, also for items of a history. False: the row is the item's
    index, or the default row until the item has its first positive. Before that, a separate row would only be trained as
    a negative.
    """

    column: str
    size: PositiveInt
    hashed: bool


class IdFeature(StrictModel):
    """The index of the user or the item, with an embedding table of width `embedding_dim`.

    `rows` is set only for items; without it the index is also the row of the embedding table. `column` holds the exact item
    index even if `rows` is hashed. If users are hashed, `column` holds the user's bucket.
    """

    kind: Literal["id"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    rows: ItemRows | None = None

    @property
    def hashed(self) -> bool:
        """Whether items share rows of the embedding table."""
        return self.rows is not None and self.rows.hashed

    @property
    def table_column(self) -> str:
        """The column with the row of the embedding table."""
        return self.rows.column if self.rows else self.column

    @property
    def table_size(self) -> int:
        """Number of rows of the embedding table."""
        return self.rows.size if self.rows else self.size


class CategoricalFeature(StrictModel):
    """One vocabulary index per row."""

    kind: Literal["categorical"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt


class MultiCategoricalFeature(StrictModel):
    """Up to `length` vocabulary indices per row, 0-padded, optionally weighted."""

    kind: Literal["multi_categorical"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    length: PositiveInt
    weights_column: str | None = None


class NumericFeature(StrictModel):
    """A number, which the model standardises with the mean and standard deviation of the window."""

    kind: Literal["numeric"]
    name: str
    column: str
    mean: float
    std: float


class BucketFeature(StrictModel):
    """A number that the pipeline has replaced by the index of its bucket."""

    kind: Literal["bucket"]
    name: str
    column: str
    size: PositiveInt


class VectorFeature(StrictModel):
    """A vector of `length` numbers that others have computed (an embedding of a text or an image), all 0 if it is missing.

    The model projects it to `width` numbers, or to `small_embedding_dim` if `width` is None. `dropout`: the probability that
    training sets a number of the projection to 0.
    """

    kind: Literal["vector"]
    name: str
    column: str
    length: PositiveInt
    width: PositiveInt | None = None
    dropout: float = Field(0.0, ge=0, lt=1)


class AgeFeature(StrictModel):
    """Example age: days from the event to the end of the night, scaled to log(1 + age) / log(1 + `days`).

    The scaled age is between 0 and 1, and 0 when serving. `days`: the largest age, fixed on the first night; older events
    are clipped to it.
    """

    kind: Literal["age"]
    name: str
    column: str
    days: PositiveFloat


class HistoryFeature(StrictModel):
    """The user's last `length` positives, 0-padded on the left.

    `ages_column`: the column with the seconds from each history item to the request, 0 for padding; None: not written.
    `actions`: the action by which each history item became a positive, as a feature of [length]; None: not written.
    """

    kind: Literal["history"]
    name: str
    column: str
    vocabulary: str
    size: PositiveInt
    length: PositiveInt
    ages_column: str | None = None
    actions: CategoricalFeature | None = None

    @property
    def columns(self) -> list[str]:
        """The columns with one value per history item: the items, then those of their ages and actions that are written."""
        further = (self.ages_column, self.actions.column if self.actions else None)
        return [self.column, *(column for column in further if column)]

    @property
    def indexed(self) -> list["HistoryFeature | CategoricalFeature"]:
        """The features whose values, [length] each, are indices: the items and, if they are written, the actions."""
        return [self, *([self.actions] if self.actions else [])]


IndexedFeature = IdFeature | CategoricalFeature | MultiCategoricalFeature | BucketFeature
Feature = Annotated[
    IndexedFeature | NumericFeature | VectorFeature,
    Field(discriminator="kind"),
]
# NumericFeature: models of earlier versions read the unscaled days.
ExampleAge = Annotated[AgeFeature | NumericFeature, Field(discriminator="kind")]


class FeatureSchema(StrictModel):
    """Features of users, items and requests. `history` and `example_age` are None if they are switched off.

    `context`: features of the request, which only the user tower reads.
    """

    version: Literal[1]
    user: list[Feature]
    item: list[Feature]
    context: list[Feature] = Field([])
    history: HistoryFeature | None = None
    example_age: ExampleAge | None = None

    @model_validator(mode="after")
    def _check(self) -> "FeatureSchema":
        ids = [feature for feature in self.item if isinstance(feature, IdFeature)]
        if len(ids) != 1:
            raise ValueError(f"the item side needs exactly one feature of kind id, found {len(ids)}")
        if self.history and (self.history.vocabulary, self.history.size) != (ids[0].vocabulary, ids[0].size):
            raise ValueError(
                f"history has vocabulary {self.history.vocabulary} of size {self.history.size}, items have "
                f"{ids[0].vocabulary} of size {ids[0].size}: both must come from the same night"
            )
        for side, columns in (("user", self.user_columns), ("item", self.item_columns)):
            repeated = sorted({column for column in columns if columns.count(column) > 1})
            if repeated:
                raise ValueError(f"columns used by two features of the {side} side: {', '.join(repeated)}")
        return self

    def without(self, names: Sequence[str]) -> "FeatureSchema":
        """The schema without the named features of users, items and requests. `history` and `example_age` can be named too.

        Raises ValueError for an unknown name, and for the item id, which is the key of all tables.
        """
        extras = [extra for extra in (self.history, self.example_age) if extra]
        removable = {feature.name for feature in (*self.of_user_tower, *self.item, *extras)} - {self.item_id.name}
        if unknown := sorted(set(names) - removable):
            raise ValueError(
                f"model.leave_out: no feature {', '.join(unknown)} can be left out, only {', '.join(sorted(removable))}"
            )
        return FeatureSchema(
            version=self.version,
            user=[feature for feature in self.user if feature.name not in names],
            item=[feature for feature in self.item if feature.name not in names],
            context=[feature for feature in self.context if feature.name not in names],
            history=None if self.history and self.history.name in names else self.history,
            example_age=None if self.example_age and self.example_age.name in names else self.example_age,
        )

    @property
    def item_id(self) -> IdFeature:
        """The item index, which identifies items in positives, negatives and histories."""
        return next(feature for feature in self.item if isinstance(feature, IdFeature))

    @property
    def of_user_tower(self) -> list[Feature]:
        """The features of the user and of the request."""
        return [*self.user, *self.context]

    @property
    def user_columns(self) -> list[str]:
        """Columns of `samples` that the user tower reads: features of user and request, those of the history, example age."""
        columns = columns_of(self.of_user_tower)
        if self.history:
            columns += self.history.columns
        return columns + ([self.example_age.column] if self.example_age else [])

    @property
    def item_columns(self) -> list[str]:
        """Columns of `item_features` that the item tower reads."""
        return columns_of(self.item)


def columns_of(features: list[Feature]) -> list[str]:
    """The columns of the features in order, including weights and embedding rows."""
    columns = []
    for feature in features:
        columns.append(feature.column)
        if isinstance(feature, MultiCategoricalFeature) and feature.weights_column:
            columns.append(feature.weights_column)
        if isinstance(feature, IdFeature) and feature.rows:
            columns.append(feature.rows.column)
    return columns
