"""Checks across sections of a config: models, indices and trainings that cannot be built, whatever the tables contain."""

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Protocol
from urllib.parse import urlparse

from pydantic import ValidationError

from jobs.common.loss_checks import hard_negative_faults, loss_faults
from model.config import LossConfig, ModelConfig, TrainingConfig
from model.index_factory import factory_fault
from model.release_config import IndexConfig, PriorConfig
from pipelines.config import Inputs, Negatives, Positives, Samples
from pipelines.contract.schema import CategoricalFeature, FeatureSchema, MultiCategoricalFeature
from pipelines.feature_config import Features
from pipelines.features.feature_schema import example_age, feature_schema
from pipelines.features.side import hashed_sizes

PLAIN_TOWER = "dssm"  # Accepts any fields, so checking it needs no torch.
# Where MLflow can store its record: servers, and databases through SQLAlchemy.
SERVERS, DATABASES = ("http", "https", "databricks", "databricks-uc", "uc"), ("sqlite", "postgresql", "mysql", "mssql")


class Sections(Protocol):
    """The sections of a config that these checks read."""

    @property
    def inputs(self) -> Inputs: ...  # noqa: D102
    @property
    def features(self) -> Features: ...  # noqa: D102
    @property
    def positives(self) -> Positives: ...  # noqa: D102
    @property
    def negatives(self) -> Negatives: ...  # noqa: D102
    @property
    def samples(self) -> Samples: ...  # noqa: D102
    @property
    def model(self) -> ModelConfig: ...  # noqa: D102
    @property
    def loss(self) -> LossConfig: ...  # noqa: D102
    @property
    def training(self) -> TrainingConfig: ...  # noqa: D102
    @property
    def index(self) -> IndexConfig: ...  # noqa: D102
    @property
    def prior_in_use(self) -> PriorConfig | None: ...  # noqa: D102


def contradictions(config: Sections) -> list[str]:
    """One message per contradiction: the keys and a remedy. Empty if the config can be used."""
    faults = [*_histories(config), *_training(config), *_context(config)]
    faults += [*loss_faults(config.loss), *hard_negative_faults(config.loss, config.negatives)]
    faults += [*_prior(config), *_item_popularity(config)]
    if config.index.factory:
        has_prior, rank = config.prior_in_use is not None, item_item_rank(config.features, config.model)
        if fault := factory_fault(config.index.factory, config.model.dim, item_item=rank, prior=has_prior):
            faults.append(f"index.factory: {fault}")
    return faults + list(_model(config))


def item_item_rank(features: Features, model: ModelConfig) -> int:
    """Components that the item-item part adds to vectors; 0 if it is off, without a history and with hashed item ids."""
    read = features.history is not None and "history" not in model.leave_out and features.ids.item.buckets is None
    return model.item_item_rank if read else 0


def _histories(config: Sections) -> Iterator[str]:
    history, ahead_days = config.features.history, config.positives.ahead_days
    ahead = history is not None and history.order == "ahead"
    if ahead and ahead_days is None:
        yield (
            "positives.ahead_days: features.history.order: ahead needs it: set it to the number of days that the model "
            "should look ahead, or choose the order strictly_before"
        )
    if ahead_days is not None and not ahead:
        order = f"is {history.order}" if history else "does not exist, because features.history is off"
        yield (
            f"positives.ahead_days: only features.history.order: ahead reads it, and the order {order}: set that order, or "
            "remove positives.ahead_days"
        )
    if config.samples.pack is not None and (history is None or history.order == "leave_one_out"):
        yield (
            "samples.pack: packs positives that share a history in the order of time, and "
            f"{'features.history is off' if history is None else 'the order leave_one_out has no order of time'}: choose "
            "features.history.order: strictly_before or ahead, or set samples.pack: null"
        )


def _training(config: Sections) -> Iterator[str]:
    training, supervision = config.training, config.loss.self_supervision
    if training.processes > config.samples.trainers:
        yield (
            f"training.processes: {training.processes} processes cannot share the row groups of a sample table that is "
            f"written for samples.trainers = {config.samples.trainers}: raise samples.trainers to {training.processes}, or "
            "lower training.processes"
        )
    if training.processes > training.batch_size:
        yield (
            f"training.batch_size: {training.batch_size} rows cannot be shared by training.processes = "
            f"{training.processes}: every process needs at least one row of each batch"
        )
    if training.device == "cuda" and training.launcher == "spark" and training.processes > 1:
        yield (
            "training.device: cuda needs a GPU per process, and training.launcher: spark does not assign GPUs to processes: "
            "set training.launcher: torchrun, or training.device: cpu"
        )
    if training.bootstrap_epochs == "auto" and not config.positives.valid_hours:
        yield (
            "training.bootstrap_epochs: auto measures each pass on the last hours of ds, and positives.valid_hours is 0: set "
            "positives.valid_hours, or a number of passes"
        )
    if supervision and training.processes > supervision.items:
        yield (
            f"loss.self_supervision.items: {supervision.items} items cannot be shared by training.processes = "
            f"{training.processes}: every process needs at least one item in each step"
        )


def _context(config: Sections) -> Iterator[str]:
    """Context features must not read a column of interactions that has another role under a name of the user."""
    renamed = {theirs: ours for ours, theirs in config.inputs.interactions.columns.items()}
    for feature in config.features.context:
        for name in (feature.name, getattr(feature, "weights", None)):
            if name in renamed:
                yield (
                    f"features.context: {name!r} is the column of {renamed[name]} (inputs.interactions.columns), not a "
                    "feature of the request: take it out of features.context"
                )


def _prior(config: Sections) -> Iterator[str]:
    """Without lift, a grid of strengths needs events that training does not use. With it, the strength is known to be 1."""
    prior, lift = config.prior_in_use, config.loss.lift
    if prior is None:
        if lift:
            yield "loss.lift: leaves popularity out of the vectors, and no prior adds it: set prior: {}, or loss.lift: false"
    elif len(prior.beta) > 1 and not lift and not config.positives.valid_hours:
        yield (
            "prior.beta: is chosen on the held-out events of the night, and positives.valid_hours = 0 holds none out: set "
            "positives.valid_hours, list one prior.beta, set loss.lift: true, or set prior: null"
        )


def _item_popularity(config: Sections) -> Iterator[str]:
    """The counts of the state cover positives.window_days."""
    longest, window = max(config.features.item_popularity, default=0), config.positives.window_days
    if longest > window:
        yield (
            f"features.item_popularity: {longest} days are more than positives.window_days = {window}, the days that are "
            "counted: raise positives.window_days, or list fewer days"
        )


def _model(config: Sections) -> Iterator[str]:
    """Faults of the features and the model. The model is checked only if its features have no faults."""
    try:
        offered = expected_schema(config)
    except ValidationError as error:
        yield f"features: {'; '.join(e['msg'].removeprefix('Value error, ') for e in error.errors())}"
        return
    try:
        schema = offered.without(config.model.leave_out)
    except ValueError as error:
        yield str(error)
        return
    faults = [*_users(offered, schema), *_dropout(config), *_history_features(config, schema), *_views(config, schema)]
    yield from faults
    if not faults and (config.model.tower != PLAIN_TOWER or config.model.settings):
        yield from _tower(config, schema)


def expected_schema(config: Sections) -> FeatureSchema:
    """The schema that samples of this config will have, with made-up sizes and statistics. Raises ValidationError."""
    sizes: dict[str, int] = defaultdict(lambda: 3, hashed_sizes(config.features))
    statistics: Any = defaultdict(lambda: {"mean": 0.0, "std": 1.0})
    return feature_schema(config.features, sizes, statistics, example_age(1, {}))


def _users(offered: FeatureSchema, schema: FeatureSchema) -> Iterator[str]:
    """The user side needs a feature. The example age does not count: when serving it is the same for all users."""
    if schema.user or schema.history:
        return
    if offered.user or offered.history:
        names = [feature.name for feature in offered.user] + (["history"] if offered.history else [])
        yield f"model.leave_out: leaves no feature of users; keep at least one of {', '.join(names)}"
    else:
        yield (
            "features: there is no feature of users, so all users would get the same items: set features.user_id: true, "
            "set features.history, or list features.user"
        )


def _dropout(config: Sections) -> Iterator[str]:
    if config.model.dropout and not config.model.hidden:
        yield "model.dropout: acts on the outputs of hidden layers, and there are none: set model.hidden, e.g. [128], or 0"


def _history_features(config: Sections, schema: FeatureSchema) -> Iterator[str]:
    if config.model.history_items and not schema.history:
        yield "model.history_items: needs features.history, which is off or left out: switch it on, or set null"
    if config.model.history_dropout and not schema.history:
        yield "model.history_dropout: needs features.history, which is off or left out: switch it on, or set 0"
    poolable = [f.name for f in schema.item if isinstance(f, CategoricalFeature | MultiCategoricalFeature)]
    if config.model.history_features and not schema.history:
        yield "model.history_features: needs features.history, which is off or left out: switch it on, or list none"
        return
    for name in config.model.history_features:
        if name not in poolable:
            yield (
                f"model.history_features: {name!r} is not a categorical or multi_categorical feature under features.item "
                f"that the model reads; those are {', '.join(poolable) or 'none'}"
            )


def _views(config: Sections, schema: FeatureSchema) -> Iterator[str]:
    """Self-supervision hides features of an item, so the item side needs features besides the id."""
    supervision = config.loss.self_supervision
    if supervision is None:
        return
    if len(schema.item) < 2:
        yield (
            "loss.self_supervision: compares views of an item's features, and the model reads none but its id: list "
            "features.item (and do not leave them all out), or set loss.self_supervision: null"
        )
    elif supervision.mask == "dropout" and not any(isinstance(f, MultiCategoricalFeature) for f in schema.item):
        yield (
            "loss.self_supervision.mask: dropout hides values of multi_categorical features, and the items have none: "
            "choose another mask"
        )


def _tower(config: Sections, schema: FeatureSchema) -> Iterator[str]:
    """Build the model without memory for its parameters, as training will: every tower has its own conditions."""
    import torch

    from model.loss.self_supervision import require_views
    from model.network.two_tower import TwoTower

    try:
        with torch.device("meta"):
            towers = TwoTower(schema, config.model)
        if config.loss.self_supervision:
            require_views(towers)
    except ValueError as error:
        yield str(error)


def tracking_uri_fault(uri: str) -> str | None:
    """Why MLflow cannot store its record at a URI, judged by the URI only; None if it can."""
    scheme = urlparse(uri).scheme or uri
    plugins = {plugin.name for plugin in entry_points(group="mlflow.tracking_store")} - {"", "file"}
    if scheme.partition("+")[0] in {*SERVERS, *DATABASES, *plugins}:
        return None
    what = "is a folder" if scheme in (uri, "file") else f"has the unknown scheme {scheme}"
    return (
        f"{what}, where MLflow cannot store its record: name a server (http://HOST:PORT) or a database "
        "(sqlite:////FOLDER/mlflow.db), or leave tracking.uri out"
    )
