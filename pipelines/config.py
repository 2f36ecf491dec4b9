"""The Spark side of the config: inputs, positives, negatives, samples, checks, simulation."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from pipelines.contract.negative_kinds import QUOTAS
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
    repeats: bool = Field(
        True,
        description="also train on positives of an item that the user had before; false: only on the first of each user and "
        "item, for data in which users take the same items again and evaluation.new_items_only asks for others. Histories, "
        "known items and popularity count all positives",
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
    coarse: int = Field(
        2,
        ge=0,
        description="medium hard: recalled for this user, dropped by coarse ranking. They pay because "
        "loss.stage_weight compares them with the fine ones; 5 of each gain more than 2 (docs/losses.md)",
    )
    fine: int = Field(2, ge=0, description="hard: reached fine ranking at low positions, not exposed")
    mined: int = Field(
        0,
        ge=0,
        description="hard: ranked for this user at `mined_ranks` by the release before ds; needs no ranking logs. Nights "
        "without such a release (the first one) draw easy negatives instead",
    )
    mined_ranks: list[Annotated[int, Field(ge=1, le=10_000)]] = Field(
        [101, 500],
        min_length=2,
        max_length=2,
        description="first and last rank of the items that mined negatives are drawn from, among the items that the user "
        "does not have; the best ranks hold too many items that the user would like (Facebook, KDD 2020)",
    )
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
        return sum(getattr(self, kind) for kind in QUOTAS)

    @model_validator(mode="after")
    def _some(self) -> "Negatives":
        if self.total == 0:
            raise ValueError("at least one kind of negative needs a quota above 0")
        return self

    @model_validator(mode="after")
    def _ranks(self) -> "Negatives":
        first, last = self.mined_ranks
        if first > last:
            raise ValueError(f"mined_ranks: the first rank, {first}, is after the last one, {last}: swap them")
        if self.mined > last - first + 1:
            raise ValueError(
                f"mined: {self.mined} negatives per row cannot be drawn from the {last - first + 1} ranks of mined_ranks: "
                "widen mined_ranks, or lower mined"
            )
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
    users: int = Field(2000, ge=1, description="users on every day")
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
    categories: int = Field(20, ge=2, description="categories of items; each item has one")
    tags: int = Field(60, ge=2, description="tags of items; each item has up to four")
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
