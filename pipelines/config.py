"""The Spark side of the config: inputs, features, positives, negatives, samples, simulation. A line under each field."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from pipelines.contract.strict import StrictModel

STAGES = ("recall", "coarse", "fine", "rerank", "exposed")  # of the ranking funnel, in order


class InputTable(StrictModel):
    """Where an input table lives and what its columns are called there."""

    path: str | None = Field(None, description="folder or URI of the table; default: its own name under the warehouse")
    columns: dict[str, str] = Field(
        {}, description="our name -> your name, for columns that are called differently, e.g. {event_time: ts}"
    )


class Inputs(StrictModel):
    """The tables that users own."""

    interactions: InputTable = InputTable()
    ranking_logs: InputTable = InputTable()
    users: InputTable = InputTable()
    items: InputTable = InputTable()


class VocabularyFeatureConfig(StrictModel):
    """How the values of a feature become indices: through an exact vocabulary, or hashed to buckets."""

    min_count: int = Field(
        1, ge=1, description="a value gets an index on the first night that reads it so often; until then it is default"
    )
    buckets: int | None = Field(
        None, ge=1, description="index = 2 + hash mod buckets, no vocabulary: bounded, at the price of collisions"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "VocabularyFeatureConfig":
        if self.buckets is not None and self.min_count > 1:
            raise ValueError("buckets and min_count exclude each other: a hashed value needs no count to get an index")
        return self


class CategoricalFeatureConfig(VocabularyFeatureConfig):
    """One value of a closed or open set; each value gets an index."""

    kind: Literal["categorical"]
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")


class MultiCategoricalFeatureConfig(VocabularyFeatureConfig):
    """Several values at once (tags, genres), optionally weighted; the tower takes their weighted mean."""

    kind: Literal["multi_categorical"]
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")
    max_values: int = Field(8, ge=1, description="values beyond this many are cut: every row costs this much")
    weights: str | None = Field(None, description="column with an array of weights, one a value")


class NumericFeatureConfig(StrictModel):
    """A number, standardised with the catalogue's own mean and deviation, or put into buckets."""

    kind: Literal["numeric"]
    name: str = Field(pattern=r"[a-z][a-z0-9_]*$")
    boundaries: list[FiniteFloat] | None = Field(
        None, description="ascending bucket edges; without them the number is standardised"
    )

    @model_validator(mode="after")
    def _ascending(self) -> "NumericFeatureConfig":
        if self.boundaries is not None and (not self.boundaries or sorted(set(self.boundaries)) != self.boundaries):
            raise ValueError("boundaries must be ascending, without repeats, and at least one")
        return self


FeatureConfig = Annotated[
    CategoricalFeatureConfig | MultiCategoricalFeatureConfig | NumericFeatureConfig, Field(discriminator="kind")
]


class FeatureItemId(StrictModel):
    """The id of an item. Its own index is always exact: tables and the search index are keyed by it."""

    buckets: int | None = Field(
        None, ge=1, description="rows of the item's embedding table, chosen by hash; null: a row for each item"
    )


class FeatureIds(StrictModel):
    """How the ids of users and items become indices."""

    user: VocabularyFeatureConfig = VocabularyFeatureConfig()
    item: FeatureItemId = FeatureItemId()


class History(StrictModel):
    """The user's last positives, strictly before the event."""

    length: int = Field(
        50, ge=1, description="L: positives kept; longer histories blur in a mean and cost reading time"
    )
    order: Literal["strictly_before", "leave_one_out"] = Field(
        "strictly_before",
        description="leave_one_out: the user's last other positives whatever their order, for data typed in one sitting, "
        "where order means nothing",
    )


class Features(StrictModel):
    """What the towers see. The ids of user and item are always there and need no line."""

    user: list[FeatureConfig] = Field([])
    item: list[FeatureConfig] = Field([])
    history: History | None = Field(History(), description="null switches the history off")
    example_age: bool = Field(
        False,
        description="the user tower reads log(1 + days from the event to the end of ds), scaled to 0 to 1; 0 when serving "
        "(YoutubeDNN). Off: on nights of one day it is the time of day, see docs/algorithms.md",
    )
    user_id: bool = Field(True, description="an embedding of the user's id; off, users live on features and history")
    ids: FeatureIds = FeatureIds()

    @model_validator(mode="after")
    def _names(self) -> "Features":
        for side, features in (("user", self.user), ("item", self.item)):
            names = [feature.name for feature in features]
            reserved = sorted(set(names) & {"id", "index", "bucket", f"{side}_id"})
            if reserved:
                raise ValueError(
                    f"features.{side}: the name {reserved[0]!r} is taken by the id itself; ids need no line"
                )
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"features.{side}: {repeated[0]!r} is listed twice")
        return self


class Downsample(StrictModel):
    """Popularity down-sampling: a few items take most clicks."""

    form: Literal["word2vec", "power"] = Field(
        "word2vec", description="word2vec: (sqrt(f/t)+1) t/f; power: (t/f)^exponent; both capped at 1"
    )
    threshold: float = Field(1e-3, gt=0, description="t: the share of all positives above which an item is thinned")
    exponent: float = Field(0.5, gt=0, le=1, description="a of the power form")


Reward = Annotated[float, Field(ge=0, le=1e6)]  # of an action: the column reward, up to 1e12, is multiplied by it


class Positives(StrictModel):
    """Which interactions teach the model, and how often."""

    actions: dict[str, Reward] = Field(
        {"click": 1.0}, min_length=1, description="action -> reward; an action that is not here is no positive"
    )
    deduplicate: bool = Field(True, description="same user, item and day: keep one, see day_reward")
    day_reward: Literal["last", "max", "sum"] = Field(
        "max",
        description="reward of a user, item and day: max keeps the event of the highest reward (the last of equals), last "
        "the last event, sum the last event with the rewards of all",
    )
    per_user_cap: int | None = Field(
        50, ge=1, description="positives a user and day, chosen by hash: heavy users must not own the loss"
    )
    downsample: Downsample | None = Field(Downsample(), description="null keeps every positive")
    window_days: int = Field(30, ge=1, description="days over which popularity is counted")
    known_items: int = Field(
        1000, ge=1, description="distinct positives a user that the state remembers, so that none becomes a negative"
    )
    half_life_days: float | None = Field(None, gt=0, description="weight halves with this age; null: all days alike")
    valid_hours: float = Field(
        2.0,
        ge=0,
        lt=24,
        description="last hours of ds kept out of training: gates compare releases on them, the valid loss is theirs, and the "
        "next night trains on them; 0: none, and releases are not compared",
    )


class Negatives(StrictModel):
    """Quotas a row by kind. The easy ones are shared by the whole batch, the hard ones stay with their row."""

    uniform: int = Field(2, ge=0, description="drawn from all live items alike: keeps the tail in the loss")
    popularity: int = Field(2, ge=0, description="drawn by popularity^exponent: punishes the merely popular")
    coarse: int = Field(2, ge=0, description="fairly hard: recalled for this user, dropped by coarse ranking")
    fine: int = Field(2, ge=0, description="very hard: reached fine ranking, lowest positions, not exposed")
    coarse_stages: list[str] = Field(
        ["coarse"],
        description="last stages (ranking_logs.stage) of the items that coarse negatives are drawn from; `recall` beside "
        "coarse: also what was filtered before ranking, which is often filtered for what the user did (seen, blocked)",
    )
    fine_stages: list[str] = Field(
        ["fine", "rerank"], description="last stages of the items that fine negatives are drawn from"
    )
    popularity_exponent: float = Field(0.75, ge=0, le=1, description="0 is uniform, 1 is popularity itself")
    fine_share: float = Field(
        0.5, gt=0, le=1, description="share of the fine list, from its end, that hard negatives come from"
    )
    exposed_days: int = Field(1, ge=1, description="days of ranking logs whose exposures are never negatives")
    attempts: int = Field(20, ge=1, description="draws a place before it stays empty (and is counted)")
    broadcast_items: int = Field(
        2_000_000, ge=0, description="catalogues above this are drawn from by a shuffle: 60 bytes an item and task else"
    )

    @property
    def total(self) -> int:
        """K: negatives a row."""
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
                f"{both[0]!r} is in coarse_stages and in fine_stages: an item is of one kind, so remove one"
            )
        return self


class Samples(StrictModel):
    """How the sample table is laid out for the trainers."""

    row_group_rows: int = Field(
        32_768,
        ge=1,
        description="rows a row group (and file): small enough to share out, large enough to write and read fast",
    )
    trainers: int = Field(
        4, ge=1, description="the number of row groups is a multiple of this, so up to so many trainers share equally"
    )


class Checks(StrictModel):
    """How far inputs and outputs may stray before a night is refused. Within these, bad rows go to `quarantine`."""

    bad_rows: float = Field(
        0.001,
        ge=0,
        le=1,
        description="share of a table's rows that may break its contract: a few are noise, more a bug",
    )
    rows_low: float | None = Field(
        0.2, ge=0, lt=1, description="fewest rows of ds, as a share of the median of the last 7 days; null: any number"
    )
    rows_high: float | None = Field(
        5.0, gt=1, description="most rows of ds, as a multiple of the median of the last 7 days; null: any number"
    )
    null_rise: float | None = Field(
        0.3, ge=0, le=1, description="how far a column's share of nulls may rise in one night; null: as far as it likes"
    )
    duplicates: float = Field(
        0.2, ge=0, le=1, description="share of interactions that repeat another one exactly: above, it came twice"
    )
    matching_ids: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the user (and item) ids of ranking_logs that interactions (items) must have too, and of the "
        "users of interactions in users; of the table with fewer ids, and not asked of fewer than 10. 0: any",
    )
    fallback_share: float = Field(
        1.0, ge=0, le=1, description="share of hard negatives' places that easy ones may take; 1: all, no logs needed"
    )


class Simulation(StrictModel):
    """The simulated product of `simulate_logs`."""

    start: str = Field("2024-03-01", description="first simulated day")
    days: int = Field(10, ge=1, description="days simulated")
    users: int = Field(2000, ge=1)
    items: int = Field(3000, ge=50, description="items on the last day")
    new_item_share: float = Field(0.1, ge=0, lt=1, description="share of the items that is published during the days")
    requests_per_user: float = Field(0.7, gt=0, description="mean requests a user and day")
    recalled: int = Field(500, ge=20, description="items recalled a request")
    coarse_kept: int = Field(100, ge=5, description="kept by coarse ranking: these reach fine ranking")
    fine_kept: int = Field(50, ge=2, description="kept by fine ranking: these reach re-ranking")
    exposed: int = Field(10, ge=1, description="shown")
    taste_dim: int = Field(16, ge=2, description="dimension of the true taste vectors")
    categories: int = Field(20, ge=2)
    tags: int = Field(60, ge=2)
    zipf: float = Field(0.8, ge=0, description="exponent of the items' true attractiveness")
    drift: float = Field(0.0, ge=0, le=1, description="how far tastes turn each day (0: not at all)")
    noise_features: int = Field(
        0, ge=0, description="columns noise_1, … of users and items that tell nothing: does a model see that?"
    )

    @model_validator(mode="after")
    def _funnel(self) -> "Simulation":
        if not self.items > self.recalled > self.coarse_kept > self.fine_kept > self.exposed:
            raise ValueError("the funnel must narrow: items > recalled > coarse_kept > fine_kept > exposed")
        return self
