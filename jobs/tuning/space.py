"""The search space of jobs.tune: which settings a trial may change, in which ranges, and why.

A trial changes model, loss, training and prior (`training_parameters`), which all read the same sample tables. A few settings
of the tables themselves are tried one at a time (`sampling_parameters`), because each choice has its own tables.

Each range also contains the value of the user's config and the default, so that both can be trials.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jobs.common.config import Config
from model.release_config import PriorConfig

Values = dict[str, Any]  # key of the config, as in --set -> value

# A pass of the transformer over more history items than this (rows x history length) takes minutes on a few cores.
SEQUENCE_TOKENS = 5_000_000
PACK = 16  # positives per packed row, for which a history is read once. Days, blocks and splits cut most rows shorter.
HARD_QUOTAS = ("negatives.coarse", "negatives.fine")
HARD_OPTIONS = ("loss.hard_ramp", "loss.hard_weight", "loss.hard_temperature", "loss.hard_rows")
STAGE_WEIGHT = "loss.stage_weight"
ACTIONS = "features.history.actions"


@dataclass(frozen=True)
class TuningData:
    """What the space must know about the data."""

    rows: int  # positives of the bootstrap
    days: int  # days of logs that the bootstrap reads
    ranking_logs: bool  # whether the bootstrap has ranking logs: hard negatives come from them
    actions: int = 1  # how many of positives.actions the logs of the bootstrap have


@dataclass(frozen=True)
class Parameter:
    """A setting and its range: `choices`, or numbers from `low` to `high`."""

    name: str  # key of the config, as in --set
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    whole: bool = False  # whole numbers; other ranges are logarithmic
    known: tuple[float, ...] = ()  # numbers of the config and of the defaults, which are not rounded

    def including(self, *values: Any) -> "Parameter":
        """The parameter with a range that contains these values."""
        if self.choices:
            choices = list(self.choices)
            choices += [value for place, value in enumerate(values) if value not in (*choices, *values[:place])]
            return replace(self, choices=tuple(choices))
        numbers = [value for value in values if isinstance(value, int | float)]
        return replace(self, low=min(self.low, *numbers), high=max(self.high, *numbers), known=tuple(numbers))

    def near(self, value: Any, rng: np.random.Generator) -> Any:
        """Another value: any other choice, or a number from half to twice the value. The same value if there is no other."""
        if self.choices:
            others = [choice for choice in self.choices if choice != value]
            return others[rng.integers(len(others))] if others else value
        moved = float(np.clip(value * 2 ** rng.uniform(-1, 1), self.low, self.high))
        if not self.whole:
            return self.decoded(moved)
        step = max(1, abs(round(moved) - value)) * (1 if moved > value or value <= self.low else -1)
        return int(np.clip(value + step, self.low, self.high))

    def decoded(self, stored: Any) -> Any:
        """A value that Optuna stored, as the config has it. Numbers get two digits: the search is no more precise."""
        if self.choices:
            return next(choice for choice in self.choices if encoded(choice) == stored)
        if self.whole or stored in self.known:
            return int(stored) if self.whole else stored
        return float(f"{stored:.2g}")


def encoded(value: Any) -> Any:
    """A value as Optuna stores it: lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def training_parameters(config: Config, data: TuningData) -> list[Parameter]:
    """The settings that need no other sample tables, with ranges that fit the features and the data."""
    defaults = Config()
    return [
        parameter.including(value_of(config, parameter.name), *_default_in_range(defaults, parameter))
        for parameter in (*_model(config, data), *_loss(config, data), *_training(config), *_prior(config))
    ]


def _default_in_range(defaults: Config, parameter: Parameter) -> list[Any]:
    """The default, unless it is a choice that was left out for this data."""
    default = value_of(defaults, parameter.name)
    return [] if parameter.choices and default not in parameter.choices else [default]


def _model(config: Config, data: TuningData) -> Iterator[Parameter]:
    features, history = config.features, config.features.history
    towers = ["dssm"]  # All features go through one MLP per side.
    if not config.loss.self_supervision:
        towers.append("youtube_dnn")  # Items are only ids: strong if they have many clicks.
    if (
        history
        and history.order != "leave_one_out"
        and (config.samples.pack or _tokens(config, data) <= SEQUENCE_TOKENS)
    ):
        towers.append("sequence")  # Reads the order of the history.
    yield Parameter("model.tower", tuple(towers))
    yield Parameter("model.dim", (32, 64, 128))  # The index grows with it; more than 128 seldom gains anything.
    yield Parameter("model.embedding_dim", (16, 32, 64, 128))  # Ids with few clicks overfit long embeddings.
    yield Parameter("model.hidden", ([], [128], [256, 128]))  # None: nothing to overfit; two: interactions of features.
    yield Parameter("model.id_dropout", (0.0, 0.05, 0.1, 0.3))  # High: rely on features, for new and rare ids.
    yield Parameter("model.dropout", (0.0, 0.1, 0.3))
    if not history:
        return
    if config.model.item_item and features.ids.item.buckets is None:
        yield Parameter("model.item_item.weight", low=0.1, high=4.0)  # High: pairs of items say more than features.
        yield Parameter("model.item_item.popularity_exponent", (0.0, 0.25, 0.5))  # High: finds rare items more often.
    yield Parameter("model.history_dropout", (0.0, 0.1, 0.3))  # Hides items, so that no single one decides the vector.
    yield Parameter(
        "model.history_pooling", ("mean", "decay", "attention")
    )  # mean: tastes are steady; others: recent ones count.
    fewer = [items for items in (20, 50, 100) if items < history.length]
    if fewer:
        yield Parameter("model.history_items", (None, *fewer))  # Few: tastes change. The item-item part reads all.
    kinds = ("categorical", "multi_categorical")
    pooled = [f.name for f in features.item if f.kind in kinds and f.name not in config.model.leave_out]
    if pooled:
        yield Parameter("model.history_features", ([], pooled))


def _tokens(config: Config, data: TuningData) -> int:
    history = config.features.history
    return data.rows * (history.length if history else 0)


def _loss(config: Config, data: TuningData) -> Iterator[Parameter]:
    yield Parameter("loss.kind", ("listwise",))  # The best in docs/losses.md; the config's own kind is tried too.
    yield Parameter("loss.temperature", low=0.03, high=0.5)  # Low for many clean clicks, high for few noisy ones.
    if data.ranking_logs:
        yield Parameter("loss.hard_ramp", (None, [0.0, 0.5], [0.3, 0.8]))  # Hard negatives from the start, or later.
        if config.loss.hard_rows == "own":
            yield Parameter(STAGE_WEIGHT, (0.0, 0.1, 0.2))  # Pays if the ranking knows more than clicks say.
    if config.loss.top_k:
        return  # Needs a correction, and works best with the one that it was set up with.
    yield Parameter("loss.correction", ("none", "classic", "revisited"))  # none leaves popular items ahead.


def _training(config: Config) -> Iterator[Parameter]:
    size = config.training.batch_size
    # In-batch negatives per step. Half or twice: the number of steps, and so the learning rates, stay comparable.
    sizes = [size // 2, size, size * 2]
    yield Parameter("training.batch_size", tuple(s for s in sizes if s >= max(32, config.training.processes)))
    yield Parameter("training.learning_rate", low=2e-4, high=1e-2)
    yield Parameter("training.embedding_learning_rate", low=1e-3, high=5e-2)  # Each row is updated in few steps.
    yield Parameter("training.embedding_weight_decay", (0.0, 1.0, 3.0, 10.0))  # High: rely on features of rare items.
    passes = config.training.bootstrap_epochs
    if passes != "auto":  # auto already chooses the passes while training.
        yield Parameter("training.bootstrap_epochs", low=1, high=max(4, 2 * passes), whole=True)


def _prior(config: Config) -> Iterator[Parameter]:
    """Popularity in the prior or in the vectors. Without lift, the strength of a prior is chosen on held-out hours."""
    if not config.positives.valid_hours:
        return
    if config.loss.lift:
        yield Parameter("loss.lift", (True, False))  # false: vectors with popularity; the prior adds what is recent.
    else:
        prior = config.prior if config.prior and config.prior.is_on else PriorConfig()
        yield Parameter("prior", (None, prior.model_dump()))


def sampling_parameters(config: Config, data: TuningData) -> list[Parameter]:
    """The settings of the sample tables that may be tried: few, because each choice builds its own tables.

    Not `negatives.mined`: trials are first nights, which have no release of the night before to mine with.
    """
    parameters = [*_orders(config), *_quotas(data), *_of_sequences(config, data)]
    share = {"form": "word2vec", "threshold": 1e-3, "exponent": 0.5}
    parameters.append(
        Parameter("positives.downsample", (None, share))
    )  # Popular items: keep their clicks, or thin them.
    if data.days >= 7:
        parameters.append(
            Parameter("features.example_age", (False, True))
        )  # Says how old a click is, over several days.
    return [parameter.including(value_of(config, parameter.name)) for parameter in parameters]


def _orders(config: Config) -> Iterator[Parameter]:
    history = config.features.history
    if not history:
        return
    orders = ["strictly_before"]
    if config.evaluation.split == "next_days":
        orders.append("ahead")  # Trains on what users want up to evaluation.days later, as the evaluation asks.
    if not (history.ages or history.actions or config.samples.pack) and config.model.tower != "sequence":
        orders.append("leave_one_out")  # For tastes that last longer than a sitting.
    yield Parameter("features.history.order", tuple(orders))


def _of_sequences(config: Config, data: TuningData) -> Iterator[Parameter]:
    """Settings that only the sequence tower reads (see `changes`)."""
    history = config.features.history
    if not history:
        return
    unordered = history.order == "leave_one_out"
    expensive = unordered or _tokens(config, data) > SEQUENCE_TOKENS
    if not config.samples.pack and config.model.tower != "sequence" and expensive:
        yield Parameter("samples.pack", (None, PACK))  # With packed rows, the sequence tower can be afforded.
    if data.actions > 1 and not unordered:
        yield Parameter(ACTIONS, (False, True))  # Tells a purchase in the history from a click.


def _quotas(data: TuningData) -> Iterator[Parameter]:
    yield Parameter("negatives.uniform", (1, 2, 4))  # Shared by the batch; they keep rare items in the loss.
    yield Parameter("negatives.popularity", (1, 2, 4))  # Push down items that are only popular.
    if data.ranking_logs:  # Without ranking logs, easy negatives would only take their places.
        yield Parameter("negatives.coarse", (0, 2, 5, 10))  # More pairs for loss.stage_weight.
        yield Parameter("negatives.fine", (0, 2, 5, 10))


def changes(values: Mapping[str, Any], config: Config) -> Values:
    """The settings among `values` that differ from the config, after removing those that have no effect.

    Settings that follow from others are added: a tower other than the config's has its default settings.
    """
    chosen, model = dict(values), config.model
    _fit_order(chosen, config)
    tower = chosen.get("model.tower", model.tower)
    settings = _tower_settings(chosen, tower, config)
    if tower == "youtube_dnn" or settings.get("items") == "ids":
        chosen["model.embedding_dim"] = chosen.get("model.dim", model.dim)  # An item's vector is its embedding.
    if tower == "sequence":  # It does not pool.
        chosen |= {"model.history_pooling": "mean", "model.history_items": None}
    if not chosen.get("model.hidden", model.hidden):
        chosen["model.dropout"] = 0.0  # It acts on hidden layers.
    chosen["model.settings"] = settings
    _fit_hard_negatives(chosen, config)
    return {name: value for name, value in chosen.items() if value != value_of(config, name)}


def _fit_order(chosen: Values, config: Config) -> None:
    """Add what the order of the history needs. Packed rows, which the config does not have, are for the sequence tower."""
    order = chosen.get("features.history.order")
    if order is None and chosen.get("samples.pack") and value_of(config, "features.history.order") == "leave_one_out":
        order = chosen["features.history.order"] = "strictly_before"
    if order and order != value_of(config, "features.history.order"):
        chosen["positives.ahead_days"] = float(config.evaluation.days) if order == "ahead" else None
    if order == "leave_one_out":
        chosen |= {name: value_of(config, name) for name in ("samples.pack", ACTIONS) if name in chosen}
    if chosen.get("samples.pack") and not config.samples.pack:
        chosen["model.tower"] = "sequence"


def _tower_settings(chosen: Values, tower: str, config: Config) -> Values:
    """The settings of the tower: the config's or the defaults. A sequence tower reads the actions of the history."""
    same = tower == config.model.tower
    settings = config.model.settings if same else {}
    if ACTIONS not in chosen:
        return settings
    written = value_of(config, ACTIONS)
    if tower != "sequence":
        chosen[ACTIONS] = written  # Other towers do not read them.
    elif not (same and chosen[ACTIONS] == written) and chosen[ACTIONS] != settings.get("actions", False):
        return settings | {"actions": chosen[ACTIONS]}
    return settings


def _fit_hard_negatives(chosen: Values, config: Config) -> None:
    """Without hard negatives, or without one of the kinds that are compared, reset the options of the loss that read them."""
    quotas = [chosen.get(name, value_of(config, name)) for name in HARD_QUOTAS]
    if not all(quotas) and any(name in chosen for name in (STAGE_WEIGHT, *HARD_QUOTAS)):
        chosen[STAGE_WEIGHT] = value_of(Config(), STAGE_WEIGHT)
    if any(quotas):
        return
    source = config if config.negatives.mined else Config()
    if "loss.hard_ramp" in chosen or any(name in chosen for name in HARD_QUOTAS):
        chosen |= {name: value_of(source, name) for name in HARD_OPTIONS}


def with_changes(config: Config, changed: Mapping[str, Any]) -> Config:
    """The config with other values. Raises ValidationError if they contradict each other."""
    tree = config.model_dump()
    for name, value in changed.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return Config.model_validate(tree)


def value_of(config: Config, name: str) -> Any:
    """The value of a key such as model.dim; of a section, as a dict. None if a section above it is off."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value.model_dump() if hasattr(value, "model_dump") else value


def start_values(parameters: list[Parameter], config: Config) -> Values:
    """The values of a config, as a trial. A value that is not in the range is left out."""
    values = {p.name: value_of(config, p.name) for p in parameters}
    return {p.name: values[p.name] for p in parameters if not p.choices or values[p.name] in p.choices}
