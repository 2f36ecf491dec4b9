"""The Spark side of the config: inputs, features, positives, negatives, samples, checks, simulation."""

import zoneinfo
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt, field_validator, model_validator

from pipelines.contract.strict import StrictModel

STAGES = ("recall", "coarse", "fine", "rerank", "exposed")  # of the ranking funnel, in order


class InputTable(StrictModel):
    """The location of an input table and the names of its columns."""

    path: str | None = Field(
        None, description="folder or URI of the table; default: the folder with its name in the warehouse"
    )
    columns: dict[str, str] = Field(
        {}, description="our name -> your name, for columns with other names, e.g. {event_time: ts}"
    )


class Inputs(StrictModel):
    """The input tables, which users of Nightjar provide."""

    interactions: InputTable = InputTable()
    ranking_logs: InputTable = InputTable()
    users: InputTable = InputTable()
    items: InputTable = InputTable()


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
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")


class MultiCategoricalFeatureConfig(VocabularyFeatureConfig):
    """Several values at once (tags, genres), optionally weighted; the tower takes their weighted mean."""

    kind: Literal["multi_categorical"]
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")
    max_values: int = Field(
        8, ge=1, description="values beyond this number are cut; memory and time of a row grow with it"
    )
    weights: str | None = Field(None, description="column with an array of weights, one per value")


class NumericFeatureConfig(StrictModel):
    """A number, standardised with the mean and standard deviation of the first night, or put into buckets."""

    kind: Literal["numeric"]
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")
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
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")
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
    name: str = Field("hour", pattern=r"[a-z][a-z0-9_]*$")


class WeekdayFeatureConfig(TimeFeatureConfig):
    """The day of the week, 1 (Monday) to 7 (Sunday)."""

    kind: Literal["weekday"]
    name: str = Field("weekday", pattern=r"[a-z][a-z0-9_]*$")


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
    order: Literal["strictly_before", "leave_one_out", "ahead"] = Field(
        "strictly_before",
        description="strictly_before: the last positives before the event. leave_one_out: the last other positives of the "
        "user in any order, for data entered in one sitting, where order has no meaning. ahead: the last positives before a "
        "moment up to positives.ahead_days before the event, so that the model learns what users want in the days after a "
        "request and not only next",
    )
    ages: bool = Field(
        False,
        description="write the column history_ages: the seconds from each item of the history to the request, for towers "
        "that read time gaps",
    )

    @model_validator(mode="after")
    def _times(self) -> "History":
        if self.ages and self.order == "leave_one_out":
            raise ValueError(
                "ages: true needs times, and the order leave_one_out takes known items, which have none: set ages: false, "
                "or another order"
            )
        return self


# Columns of interactions that say what the user did in answer to the request, or when.
UNKNOWN_AT_REQUEST_TIME = {"item_id", "event_time", "action", "reward", "request_id", "ds"}


def _fields_of(feature: Any) -> list[str]:
    """The names under which a request holds a feature: its own, and that of its weights."""
    return [feature.name] + ([feature.weights] if getattr(feature, "weights", None) else [])


class Features(StrictModel):
    """The features that the towers read. The ids of users and items are built in: do not list them."""

    user: list[FeatureConfig] = Field([])
    item: list[FeatureConfig] = Field([])
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
        if taken := sorted(names & {"user_id", "history", "example_age"}):
            raise ValueError(f"features.context: the name {taken[0]!r} is reserved for a feature that is built in")
        if shared := sorted(names & {name for feature in self.user for name in _fields_of(feature)}):
            raise ValueError(
                f"features.context: {shared[0]!r} is also under features.user, and a request cannot hold both: rename one"
            )
        return self


class Downsample(StrictModel):
    """Down-sampling of positives by popularity, because a few items get most clicks."""

    form: Literal["word2vec", "power"] = Field(
        "word2vec", description="word2vec: (sqrt(f/t)+1) t/f; power: (t/f)^exponent; both capped at 1"
    )
    threshold: float = Field(
        1e-3, gt=0, description="t: the share of all positives above which an item is down-sampled"
    )
    exponent: float = Field(0.5, gt=0, le=1, description="a of the power form")


Reward = Annotated[float, Field(ge=0, le=1e6)]  # of an action; multiplies the column reward, which is at most 1e12


class Positives(StrictModel):
    """Which interactions the model trains on, and with what weight."""

    actions: dict[str, Reward] = Field(
        {"click": 1.0}, min_length=1, description="action -> reward; interactions with other actions are not positives"
    )
    deduplicate: bool = Field(True, description="keep one positive per user, item and day, see day_reward")
    day_reward: Literal["last", "max", "sum"] = Field(
        "max",
        description="which event of a user, item and day to keep: max: that with the highest reward (the last of equal ones); "
        "last: the last one; sum: the last one, with the sum of all rewards",
    )
    per_user_cap: int | None = Field(
        50,
        ge=1,
        description="most positives per user and day, chosen by hash, so that heavy users do not dominate; null: no cap",
    )
    downsample: Downsample | None = Field(Downsample(), description="null: keep all positives")
    window_days: int = Field(30, ge=1, description="number of days over which popularity is counted")
    known_items: int = Field(
        1000,
        ge=1,
        description="most distinct items per user that the state remembers, so that they do not become negatives",
    )
    ahead_days: FiniteFloat | None = Field(
        None,
        gt=0,
        le=3650,
        description="N, with features.history.order: ahead and only with it: a history ends up to this many days before its "
        "event, by hash; as many days as you want to predict (evaluation.days measures them)",
    )
    half_life_days: float | None = Field(
        None, gt=0, description="the weight of a row halves with this age; null: no decay"
    )
    valid_hours: float = Field(
        2.0,
        ge=0,
        lt=24,
        description="hold back the last hours of ds from training: gates compare releases on them, the validation loss uses "
        "them, and the next night trains on them; 0: none, and releases are not compared",
    )


class Negatives(StrictModel):
    """Number of negatives per row by kind. A batch shares its easy negatives; hard negatives belong to their row."""

    uniform: int = Field(2, ge=0, description="drawn uniformly from all live items; keeps rare items in the loss")
    popularity: int = Field(
        2, ge=0, description="drawn by popularity^popularity_exponent; penalises items that are only popular"
    )
    coarse: int = Field(2, ge=0, description="medium hard: recalled for this user, dropped by coarse ranking")
    fine: int = Field(2, ge=0, description="hard: reached fine ranking at low positions, not exposed")
    coarse_stages: list[str] = Field(
        ["coarse"],
        description="coarse negatives are drawn from items whose last stage (ranking_logs.stage) is one of these; with "
        "`recall` also from items filtered before ranking, often because of what the user did (seen, blocked)",
    )
    fine_stages: list[str] = Field(
        ["fine", "rerank"], description="fine negatives are drawn from items whose last stage is one of these"
    )
    popularity_exponent: float = Field(0.75, ge=0, le=1, description="0: uniform, 1: proportional to popularity")
    fine_share: float = Field(
        0.5, gt=0, le=1, description="fine negatives come from this share of the fine list, at its end"
    )
    exposed_days: int = Field(
        1, ge=1, description="days of ranking logs whose exposed items are never negatives of the user"
    )
    attempts: int = Field(
        20, ge=1, description="draws per negative before its place stays empty (empty places are counted)"
    )
    broadcast_items: int = Field(
        2_000_000,
        ge=0,
        description="draw by a shuffle if the catalogue has more items; else broadcast it, at 60 bytes per item and task",
    )

    @property
    def total(self) -> int:
        """K: negatives per row."""
        return self.uniform + self.popularity + self.coarse + self.fine

    @model_validator(mode="after")
    def _some(self) -> "Negatives":
        if self.total == 0:
            raise ValueError("at least one kind of negative needs a quota above 0")
        return self

    @model_validator(mode="after")
    def _stages(self) -> "Negatives":
        for kind in ("coarse", "fine"):
            stages = getattr(self, f"{kind}_stages")
            unknown = [stage for stage in stages if stage not in STAGES]
            if unknown:
                raise ValueError(f"{kind}_stages: {unknown[0]!r} is not a stage; stages are {', '.join(STAGES[:-1])}")
            if "exposed" in stages:
                raise ValueError(f"{kind}_stages: 'exposed' items were shown to the user, and are never negatives")
            if getattr(self, kind) and not stages:
                raise ValueError(f"{kind}_stages is empty: name a stage, or set {kind} to 0")
        if both := sorted(set(self.coarse_stages) & set(self.fine_stages)):
            raise ValueError(
                f"{both[0]!r} is in coarse_stages and in fine_stages: an item belongs to one kind, so remove one"
            )
        return self


class Samples(StrictModel):
    """The layout of the sample table for the trainers."""

    row_group_rows: int = Field(
        32_768,
        ge=1,
        description="rows (with pack: positives) per row group and file: small enough to distribute, large enough to write "
        "and read fast",
    )
    trainers: int = Field(
        4,
        ge=1,
        description="the number of row groups is a multiple of this, so that up to this many trainers get equal shares",
    )
    pack: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="T: write up to T consecutive positives of a user as one row with one history, so that a sequence tower "
        "reads the history once for all of them; about as many as users have per night. null: one row per positive",
    )


class Checks(StrictModel):
    """Limits beyond which a night is refused. Within them, bad rows go to `quarantine`."""

    bad_rows: float = Field(
        0.001,
        ge=0,
        le=1,
        description="largest share of rows of a table that may break its contract: a few are noise, more are a bug",
    )
    rows_low: float | None = Field(
        0.2, ge=0, lt=1, description="fewest rows of ds, as a share of the median of the last 7 days; null: no limit"
    )
    rows_high: float | None = Field(
        5.0, gt=1, description="most rows of ds, as a multiple of the median of the last 7 days; null: no limit"
    )
    null_rise: float | None = Field(
        0.3, ge=0, le=1, description="largest rise of the share of nulls of a column in one night; null: no limit"
    )
    duplicates: float = Field(
        0.2,
        ge=0,
        le=1,
        description="largest share of interactions that repeat another one exactly; above it the feed probably came twice",
    )
    matching_ids: float = Field(
        0.01,
        ge=0,
        le=1,
        description="smallest share of ids that two tables must have in common: users of ranking_logs and interactions, items "
        "of ranking_logs and items, users of interactions and users. Relative to the table with fewer ids; not checked if it "
        "has fewer than 10. 0: no limit",
    )
    fallback_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="largest share of hard negatives that easy ones may replace; 1: all, so ranking logs are optional",
    )


class Simulation(StrictModel):
    """The simulated product of the job `simulate_logs`."""

    start: str = Field("2024-03-01", description="first simulated day")
    days: int = Field(10, ge=1, description="days simulated")
    users: int = Field(2000, ge=1)
    items: int = Field(3000, ge=50, description="items on the last day")
    new_item_share: float = Field(
        0.1, ge=0, lt=1, description="share of the items that are published during the simulated days"
    )
    requests_per_user: float = Field(0.7, gt=0, description="mean number of requests per user and day")
    recalled: int = Field(500, ge=20, description="items recalled per request")
    coarse_kept: int = Field(100, ge=5, description="items per request that coarse ranking passes to fine ranking")
    fine_kept: int = Field(50, ge=2, description="items per request that fine ranking passes to re-ranking")
    exposed: int = Field(10, ge=1, description="items shown per request")
    taste_dim: int = Field(16, ge=2, description="dimension of the true taste vectors")
    categories: int = Field(20, ge=2)
    tags: int = Field(60, ge=2)
    zipf: float = Field(0.8, ge=0, description="exponent of the items' true attractiveness")
    drift: float = Field(0.0, ge=0, le=1, description="how much tastes change each day (0: not at all)")
    noise_features: int = Field(
        0,
        ge=0,
        description="number of columns noise_1, … of users and items without information, to test a model with",
    )

    @model_validator(mode="after")
    def _funnel(self) -> "Simulation":
        if not self.items > self.recalled > self.coarse_kept > self.fine_kept > self.exposed:
            raise ValueError("the funnel must narrow: items > recalled > coarse_kept > fine_kept > exposed")
        return self
