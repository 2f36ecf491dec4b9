"""The features that the towers read: kinds, ids, history and context of the request."""

import zoneinfo
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt, field_validator, model_validator

from pipelines.contract.strict import StrictModel

NAME = r"[a-z][a-z0-9_]*$"  # of a feature


class VocabularyFeatureConfig(StrictModel):
    """How values of a feature become indices: by an exact vocabulary, or by hashing into buckets."""

    min_count: int = Field(
        1,
        ge=1,
        description="a value gets an index on the first night that reads it this often; before that it has the default index",
    )
    buckets: int | None = Field(
        None,
        ge=1,
        description="hash instead of a vocabulary: index = 2 + hash mod buckets; bounds the table, but values may collide",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "VocabularyFeatureConfig":
        if self.buckets is not None and self.min_count > 1:
            raise ValueError("buckets and min_count exclude each other: a hashed value needs no count to get an index")
        return self


class CategoricalFeatureConfig(VocabularyFeatureConfig):
    """One value of a closed or open set. Each value gets an index."""

    kind: Literal["categorical"]
    name: str = Field(pattern=NAME, description="name of the feature and of its column in the input")


class MultiCategoricalFeatureConfig(VocabularyFeatureConfig):
    """Several values at once (tags, genres), optionally weighted; the tower takes their weighted mean."""

    kind: Literal["multi_categorical"]
    name: str = Field(pattern=NAME, description="name of the feature and of its column in the input")
    max_values: int = Field(
        8, ge=1, description="values beyond this number are cut; memory and time of a row grow with it"
    )
    weights: str | None = Field(None, description="column with an array of weights, one per value")


class NumericFeatureConfig(StrictModel):
    """A number, standardised with the mean and standard deviation of the first night, or put into buckets."""

    kind: Literal["numeric"]
    name: str = Field(pattern=NAME, description="name of the feature and of its column in the input")
    boundaries: list[FiniteFloat] | None = Field(
        None, description="ascending bucket edges; null: standardise the number"
    )

    @model_validator(mode="after")
    def _ascending(self) -> "NumericFeatureConfig":
        if self.boundaries is not None and (not self.boundaries or sorted(set(self.boundaries)) != self.boundaries):
            raise ValueError("boundaries must be ascending, without repeats, and at least one")
        return self


class VectorFeatureConfig(StrictModel):
    """A vector that others have computed, e.g. of a text or an image. It is not trained, only its projection is."""

    kind: Literal["vector"]
    name: str = Field(pattern=NAME, description="name of the feature and of its column in the input")
    length: int = Field(ge=1, le=8192, description="number of elements; a vector of another length is a bad row")
    width: int | None = Field(
        None, ge=1, description="length of its projection, which the tower reads; null: model.small_embedding_dim"
    )
    dropout: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="share of the projection that training sets to 0, so that the tower does not rely on the vector alone",
    )


FeatureConfig = Annotated[
    CategoricalFeatureConfig | MultiCategoricalFeatureConfig | NumericFeatureConfig | VectorFeatureConfig,
    Field(discriminator="kind"),
]


class TimeFeatureConfig(StrictModel):
    """A part of the time of the request in a time zone. It needs no column: training rows take it from event_time."""

    zone: str | None = Field(None, description="time zone, e.g. Europe/Berlin; null: features.context_zone")

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        return zone if zone is None else _known_zone(zone)


class HourFeatureConfig(TimeFeatureConfig):
    """The hour of the day, 0 to 23."""

    kind: Literal["hour"]
    name: str = Field("hour", pattern=NAME, description="name of the feature, also in requests")


class WeekdayFeatureConfig(TimeFeatureConfig):
    """The day of the week, 1 (Monday) to 7 (Sunday)."""

    kind: Literal["weekday"]
    name: str = Field("weekday", pattern=NAME, description="name of the feature, also in requests")


ContextFeatureConfig = Annotated[
    CategoricalFeatureConfig
    | MultiCategoricalFeatureConfig
    | NumericFeatureConfig
    | VectorFeatureConfig
    | HourFeatureConfig
    | WeekdayFeatureConfig,
    Field(discriminator="kind"),
]


def _known_zone(zone: str) -> str:
    if zone not in zoneinfo.available_timezones():
        raise ValueError(f"{zone!r} is not a time zone; write a name such as UTC or Europe/Berlin")
    return zone


class FeatureItemId(StrictModel):
    """The id of an item. Its index is always exact, because tables and the search index are keyed by it."""

    buckets: int | None = Field(
        None, ge=1, description="number of rows of the embedding table of items, chosen by hash; null: one row per item"
    )


class FeatureIds(StrictModel):
    """How the ids of users and items become indices."""

    user: VocabularyFeatureConfig = VocabularyFeatureConfig()
    item: FeatureItemId = FeatureItemId()


class History(StrictModel):
    """The last positives of the user before the event."""

    length: int = Field(
        50, ge=1, description="L: number of positives; longer histories blur in a mean and take longer to read"
    )
    order: Literal["strictly_before", "leave_one_out", "ahead"] | None = Field(
        None,
        description="strictly_before: the last positives before the event. leave_one_out: the last other positives of the "
        "user in any order, for tastes that last longer than a sitting. ahead: the last positives before a "
        "moment up to positives.ahead_days before the event, so that the model learns what users want in the days after a "
        "request and not only next. null: leave_one_out if evaluation.split is next_days and the tower takes the mean of the "
        "history, ahead if positives.ahead_days is set, otherwise strictly_before",
    )
    ages: bool = Field(
        False,
        description="write the column history_ages: the seconds from each item of the history to the request, for towers "
        "that read time gaps",
    )
    actions: bool = Field(
        False,
        description="write the column history_actions: the action by which each item of the history became a positive, for "
        "towers that tell a purchase from a click; useful with several positives.actions",
    )

    @model_validator(mode="after")
    def _facts_of_events(self) -> "History":
        for name, needed in (("ages", "times"), ("actions", "actions")):
            if getattr(self, name) and self.order == "leave_one_out":
                raise ValueError(
                    f"{name}: true needs {needed}, and the order leave_one_out takes known items, which have none: set "
                    f"{name}: false, or another order"
                )
        return self


# Columns of interactions that say what the user did in answer to the request, or when.
UNKNOWN_AT_REQUEST_TIME = {"item_id", "event_time", "action", "reward", "request_id", "ds"}


def _fields_of(feature: Any) -> list[str]:
    """The names under which a request holds a feature: its own, and that of its weights."""
    return [feature.name] + ([feature.weights] if getattr(feature, "weights", None) else [])


class Features(StrictModel):
    """The features that the towers read. The ids of users and items are built in: do not list them."""

    user: list[FeatureConfig] = Field([], description="features of the user: columns of users")
    item: list[FeatureConfig] = Field([], description="features of the item: columns of items")
    context: list[ContextFeatureConfig] = Field(
        [],
        description="features of the request, which only the user tower reads: columns of interactions that are known when "
        "the request is made (device, surface, query), and the kinds hour and weekday, which need no column",
    )
    context_zone: str = Field("UTC", description="time zone of the kinds hour and weekday")
    history: History | None = Field(History(), description="null: no history")
    example_age: bool = Field(
        False,
        description="the user tower reads log(1 + days from the event to the end of ds), scaled to 0 to 1, and 0 when serving "
        "(YoutubeDNN). Off by default: on nights of one day it is only the time of day, see docs/algorithms.md",
    )
    user_id: bool = Field(
        True, description="learn an embedding per user id; false: the user tower reads only features and history"
    )
    ids: FeatureIds = FeatureIds()
    item_popularity: list[PositiveInt] = Field(
        [],
        description="numbers of days N: each adds a numeric item feature popularity_Nd = log(1 + positives in the N days "
        "before the day of the items snapshot). Most items then have a version per snapshot",
    )

    @property
    def history_order(self) -> str | None:
        """The order of the history; None without a history. A config replaces null before the pipelines see it."""
        return (self.history.order or "strictly_before") if self.history else None

    @property
    def popularity_features(self) -> list[NumericFeatureConfig]:
        """The features that `item_popularity` adds to those of items."""
        return [NumericFeatureConfig(kind="numeric", name=f"popularity_{days}d") for days in self.item_popularity]

    @field_validator("context_zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        return _known_zone(zone)

    @model_validator(mode="after")
    def _names(self) -> "Features":
        items = [*self.item, *self.popularity_features]
        for side, features in (("user", self.user), ("item", items), ("context", self.context)):
            names = [feature.name for feature in features]
            reserved = sorted(set(names) & {"id", "index", "bucket", f"{side}_id"})
            if reserved:
                raise ValueError(f"features.{side}: the name {reserved[0]!r} is reserved for the id, which is built in")
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"features.{side}: {repeated[0]!r} is listed twice")
        return self

    @model_validator(mode="after")
    def _context_names(self) -> "Features":
        """A request has the fields of the user and of the context side by side. Some columns are unknown at request time."""
        names = {name for feature in self.context for name in _fields_of(feature)}
        if outcome := sorted(names & UNKNOWN_AT_REQUEST_TIME):
            raise ValueError(f"features.context: {outcome[0]!r} is not known when the request is made")
        of_history = [f"history_{name}" for name in ("ages", "actions") if self.history and getattr(self.history, name)]
        if taken := sorted(names & {"user_id", "history", "example_age", *of_history}):
            raise ValueError(f"features.context: the name {taken[0]!r} is reserved for a feature that is built in")
        if shared := sorted(names & {name for feature in self.user for name in _fields_of(feature)}):
            raise ValueError(
                f"features.context: {shared[0]!r} is also under features.user, and a request cannot hold both: rename one"
            )
        return self
