"""The whole config tree: one YAML file, `--set a.b=c` on top, unknown keys refused with the nearest known name."""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError, field_validator, model_validator

from jobs.common.config_checks import contradictions, tracking_uri_fault
from model.config import IndexConfig, LossConfig, ModelConfig, TrainingConfig
from pipelines.config import Checks, Features, Inputs, Negatives, Positives, Samples, Simulation
from pipelines.contract.errors import UsageError
from pipelines.contract.strict import StrictModel
from pipelines.session import refuse_fixed
from pipelines.storage.manifest import digest


class Evaluation(StrictModel):
    """What a night's model is measured on."""

    split: Literal["next_days", "last_positive"] = Field(
        "next_days",
        description="next_days: the positives of the days after ds, where they exist; last_positive: each user's last "
        "positive, kept out of everything, for data where users come once",
    )
    days: int = Field(1, ge=1, description="N of next_days")
    new_items_only: bool = Field(
        True, description="count only items that the user did not have yet, and take known ones out of the rankings"
    )
    ks: list[PositiveInt] = Field([10, 50, 100], min_length=1, description="cut-offs of recall, NDCG and hit rate")
    max_users: int = Field(20_000, ge=1, description="users evaluated, chosen by hash: enough for a tight interval")
    popularity_days: int = Field(7, ge=1, description="window of the popularity baseline")
    new_item_days: int = Field(7, ge=1, description="an item counts as new for so many days after its publish_time")
    item_cf_neighbours: int = Field(100, ge=1, description="neighbours an item keeps in the item-item baseline")
    item_cf_items: int = Field(100, ge=2, description="latest known items a user brings to the item-item baseline")
    simulated_truth: bool = Field(False, description="compare with the best reachable ranking (simulated logs only)")
    bootstrap_samples: int = Field(500, ge=0, description="resamples of the users behind each 95% interval")

    @field_validator("ks")
    @classmethod
    def _each_once(cls, ks: list[int]) -> list[int]:
        if len(set(ks)) < len(ks):
            raise ValueError("a cut-off is listed twice")
        return ks


class Gates(StrictModel):
    """What a release must show before it becomes the current one. Refused: exit 4, and `current` stays."""

    recall_loss: float = Field(
        0.05,
        description="share of Recall@`recall_at` that may be lost against the release in use, on the same held-out "
        "events; only a loss that is certain (paired bootstrap over users, 97.5%) counts",
    )
    recall_at: int = Field(50, ge=1, description="K of the comparison")
    beats_popularity: float = Field(
        0.0,
        description="share of recent popularity's Recall@`recall_at` (evaluation.popularity_days) that the model may lack for "
        "certain on the held-out events; a tie passes; 1: never refused",
    )
    slow_loss: float = Field(
        0.1,
        description="share that may be lost for certain against the best of the last `slow_nights` nights, in recall as a "
        "multiple of popularity's on the same events: so many small losses cannot add up",
    )
    slow_nights: int = Field(14, ge=1, description="nights that `slow_loss` looks back")
    least_users: int = Field(
        100,
        ge=1,
        description="users with held-out events below which releases are not compared: too few to tell; a note says so",
    )
    held_out: int = Field(
        5000,
        ge=1,
        description="events to compare on, at most: positives of the last positives.valid_hours as they happened, those "
        "included that down-sampling and the cap drop from training",
    )
    bootstrap_samples: int = Field(1000, ge=100, description="resamples of the users")
    day_recall: float = Field(
        0.6,
        ge=0,
        description="Recall of the release in use on the events of ds before training, against its median of the last 7 "
        "nights, at least: what nobody foresaw may be noise",
    )
    coverage: float = Field(0.5, ge=0, description="items that anybody gets, against the release in use, at least")
    rows: float = Field(0.5, ge=0, description="training rows against the median of the last 7 nights, at least")
    unknown_users: float = Field(
        0.5, ge=0, le=1, description="share of held-out events whose user has no index, at most"
    )
    effective_dimensions: float = Field(2.0, ge=0, description="of the item vectors (participation ratio), at least")
    mean_cosine: float = Field(0.95, le=1, description="of two items, at most")
    embedding_growth: float = Field(2.0, gt=0, description="length of item embeddings against last night's, at most")
    vocabulary_growth: float = Field(1.5, ge=1, description="of any vocabulary against last night's, at most")


class Tracking(StrictModel):
    """Where MLflow keeps the record."""

    uri: str | None = Field(
        None,
        description="URI of an MLflow server or of a database, e.g. sqlite:////data/mlflow.db; default: sqlite in the "
        "warehouse (local warehouses only)",
    )
    experiment: str = "nightjar"
    registered_model: str = Field("nightjar", description="name under which releases are registered")

    @field_validator("uri")
    @classmethod
    def _no_folder(cls, uri: str | None) -> str | None:
        if uri is not None and (fault := tracking_uri_fault(uri)):
            raise ValueError(fault)
        return uri


class Config(StrictModel):
    """Everything a job needs to know."""

    warehouse: str = Field("warehouse", description="folder or URI under which every table lives")
    seed: int = Field(17, description="with ds, decides every random choice")
    inputs: Inputs = Inputs()
    features: Features = Features()
    positives: Positives = Positives()
    negatives: Negatives = Negatives()
    samples: Samples = Samples()
    checks: Checks = Checks()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: Evaluation = Evaluation()
    gates: Gates = Gates()
    index: IndexConfig = IndexConfig()
    tracking: Tracking = Tracking()
    simulation: Simulation = Simulation()
    spark: dict[str, str | int | float | bool] = Field({}, description="Spark settings, e.g. spark.driver.memory")

    @field_validator("spark")
    @classmethod
    def _fixed(cls, spark: dict[str, Any]) -> dict[str, Any]:
        refuse_fixed(spark)
        return spark

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if faults := contradictions(self):
            raise ValueError("; ".join(faults))
        return self

    def hash_of(self, *sections: str) -> str:
        """Identity of the parts of the config that shape a step's output (with the seed)."""
        dump = self.model_dump(mode="json")
        return digest({name: dump[name] for name in ("seed", *sections)})


def load_config(path: str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, lay `a.b=c` overrides over it, check everything. UsageError names file, key and remedy."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from None
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"config {path} must be a mapping of sections, not a {type(tree).__name__}")
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"config {path}: " + "; ".join(_explain(tree, e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override!r}: write it as section.key=value, for example --set training.epochs=2")
    *parents, last = key.split(".")
    # Spark's own settings have dots in their names: --set spark.spark.driver.memory=8g
    if parents and parents[0] == "spark":
        parents, last = ["spark"], key[len("spark.") :]
    node = tree
    for name in parents:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: the value is not valid YAML") from None


def _explain(tree: dict[str, Any], error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if not place:  # Of several sections together: the message names its keys.
        return str(error["msg"].removeprefix("Value error, "))
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r:.80})"
    known = _known_keys(error["loc"][:-1])
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"{place}: there is no such key; {hint}"


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    """The fields of the section at a path of an error; discriminated unions show up in the path as their tag."""
    model: Any = Config
    for part in parents:
        if isinstance(part, int):
            continue
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _section_of(model.model_fields[str(part)].annotation)
        elif isinstance(model, list):
            model = next((m for m in model if part in str(m.model_fields["kind"].annotation)), Config)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _section_of(annotation: Any) -> Any:
    """The pydantic model inside an annotation such as `History | None` or `list[Feature]` (a list: several)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [_section_of(arg) for arg in getattr(annotation, "__args__", ())]
    flat = [m for found in inner for m in (found if isinstance(found, list) else [found]) if m is not None]
    return None if not flat else flat[0] if len(flat) == 1 else flat
