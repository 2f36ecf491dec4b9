"""The search space: it contains the config and the defaults, offers only what the data allows, and gives valid configs."""

import random
from typing import Any

import pytest

from jobs.common.config import Config, load_config
from jobs.tuning.space import (
    ACTIONS,
    PACK,
    Parameter,
    TuningData,
    changes,
    encoded,
    sampling_parameters,
    start_values,
    training_parameters,
    with_changes,
)
from tests.jobs.nightly_run import ROOT

DATA = TuningData(rows=27_000, days=6, ranking_logs=True)
BEFORE = {"features": {"history": {"order": "strictly_before"}}}
CONFIGS = ("demo", "grocery", "movielens", "production.example", "recflow")


def names(parameters: list[Parameter]) -> set[str]:
    return {parameter.name for parameter in parameters}


def of(parameters: list[Parameter], name: str) -> Parameter:
    return next(parameter for parameter in parameters if parameter.name == name)


def made(**sections: Any) -> Config:
    return Config.model_validate(sections)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_itself_changes_nothing_and_the_defaults_can_be_trained(name: str) -> None:
    config = load_config(str(ROOT / f"conf/{name}.yaml"))
    training, sampling = training_parameters(config, DATA), sampling_parameters(config, DATA)
    start = start_values([*training, *sampling], config)
    assert start.keys() == names([*training, *sampling])
    assert changes(start, config) == {}
    defaults = with_changes(config, changes(start | start_values(training, Config()), config))
    assert (defaults.loss.temperature, defaults.model.dim) == (0.15, 128)
    assert defaults.features == config.features


@pytest.mark.parametrize("name", CONFIGS)
def test_each_combination_is_a_valid_config(name: str) -> None:
    config = load_config(str(ROOT / f"conf/{name}.yaml"))
    training = training_parameters(config, DATA)
    for seed in range(12):
        rng = random.Random(seed)
        values = {
            p.name: rng.choice(p.choices) if p.choices else p.decoded(rng.uniform(p.low, p.high)) for p in training
        }
        with_changes(config, changes(values, config))
    for parameter in sampling_parameters(config, DATA):
        for choice in parameter.choices:
            with_changes(config, changes({parameter.name: choice}, config))


def test_hard_negatives_are_tried_only_with_ranking_logs() -> None:
    without = TuningData(rows=27_000, days=6, ranking_logs=False)
    assert {"negatives.coarse", "negatives.fine"} <= names(sampling_parameters(Config(), DATA))
    assert not {"negatives.coarse", "negatives.fine"} & names(sampling_parameters(Config(), without))
    assert "negatives.uniform" in names(sampling_parameters(Config(), without))


def test_the_data_decides_on_the_example_age_and_on_towers() -> None:
    week = TuningData(rows=27_000, days=7, ranking_logs=False)
    assert "features.example_age" in names(sampling_parameters(Config(), week))
    assert "features.example_age" not in names(sampling_parameters(Config(), DATA))
    many = TuningData(rows=10_000_000, days=6, ranking_logs=False)
    ordered = made(**BEFORE)
    towers = {data.rows: of(training_parameters(ordered, data), "model.tower").choices for data in (DATA, many)}
    assert ("sequence" in towers[DATA.rows], "sequence" in towers[many.rows]) == (True, False)
    packed = made(samples={"pack": 4})
    assert "sequence" in of(training_parameters(packed, many), "model.tower").choices
    assert "leave_one_out" not in of(sampling_parameters(packed, DATA), "features.history.order").choices


def test_settings_of_what_the_config_lacks_are_not_tried() -> None:
    no_history = made(features={"history": None})
    assert not {n for n in names(training_parameters(no_history, DATA)) if n.startswith("model.history")}
    assert "features.history.order" not in names(sampling_parameters(no_history, DATA))
    without_lift = made(loss={"lift": False}, prior=None)
    for config, name in ((Config(), "loss.lift"), (without_lift, "prior")):
        assert {"loss.lift", "prior"} & set(names(training_parameters(config, DATA))) == {name}
    assert "loss.lift" not in names(training_parameters(made(positives={"valid_hours": 0}), DATA))
    last = made(evaluation={"split": "last_positive"})
    assert "ahead" not in of(sampling_parameters(last, DATA), "features.history.order").choices


def test_settings_without_effect_are_no_changes_and_others_follow() -> None:
    config = made(model={"tower": "sequence", "settings": {"width": 32}, "hidden": [128]})
    changed = changes({"model.tower": "youtube_dnn", "model.dim": 32, "model.embedding_dim": 16}, config)
    assert changed == {"model.tower": "youtube_dnn", "model.dim": 32, "model.embedding_dim": 32, "model.settings": {}}
    assert changes({"model.tower": "sequence", "model.history_pooling": "decay"}, config) == {}
    few = made(model={"history_items": 20}, features={"history": {"order": "strictly_before"}})
    assert changes({"model.tower": "sequence"}, few)["model.history_items"] is None
    assert changes({"model.hidden": [], "model.dropout": 0.3}, config) == {"model.hidden": []}
    ahead = changes({"features.history.order": "ahead"}, made(evaluation={"days": 3}))
    assert ahead == {"features.history.order": "ahead", "positives.ahead_days": 3.0}


def test_a_ramp_of_hard_negatives_needs_hard_negatives() -> None:
    config, without = Config(), TuningData(rows=27_000, days=6, ranking_logs=False)
    assert "loss.hard_ramp" in names(training_parameters(config, DATA))
    assert "loss.hard_ramp" not in names(training_parameters(config, without))
    easy = {"negatives.coarse": 0, "negatives.fine": 0}
    assert changes({"loss.hard_ramp": [0.0, 0.5]} | easy, config) == easy
    weighted = made(loss={"hard_weight": 0.3})
    trial = changes(easy, weighted)
    assert trial == easy | {"loss.hard_weight": 1.0}, "a config with this weight but no hard negatives is refused"
    with_changes(weighted, trial)
    mined = made(negatives={"mined": 2, "coarse": 0, "fine": 0}, loss={"hard_weight": 0.3})
    assert changes({"negatives.coarse": 0, "loss.hard_ramp": None}, mined) == {}


def test_the_order_of_stages_needs_both_kinds_of_hard_negatives() -> None:
    without = TuningData(rows=27_000, days=6, ranking_logs=False)
    assert "loss.stage_weight" in names(training_parameters(Config(), DATA))
    assert "loss.stage_weight" not in names(training_parameters(Config(), without))
    weights = next(p for p in training_parameters(Config(), DATA) if p.name == "loss.stage_weight").choices
    fine = next(p for p in sampling_parameters(Config(), DATA) if p.name == "negatives.fine").choices
    assert max(weights) * max(fine) <= 2, "docs/losses.md: products of 0.4 to 2 gained, 4 lost"
    of_all_rows = made(loss={"hard_rows": "all", "stage_weight": 0})
    assert "loss.stage_weight" not in names(training_parameters(of_all_rows, DATA)), "these belong to no row"
    config = made(loss={"stage_weight": 0.7})
    for kind in ("coarse", "fine"):
        trial = changes({f"negatives.{kind}": 0}, config)
        assert trial == {f"negatives.{kind}": 0, "loss.stage_weight": Config().loss.stage_weight}
        with_changes(config, trial)


def test_many_rows_are_packed_for_the_sequence_tower() -> None:
    many = TuningData(rows=10_000_000, days=6, ranking_logs=False)
    ordered, unordered = made(**BEFORE), Config()
    assert unordered.features.history
    assert unordered.features.history.order == "leave_one_out"
    for config, data in ((ordered, many), (unordered, many), (unordered, DATA)):
        assert of(sampling_parameters(config, data), "samples.pack").choices == (None, PACK)
    for config, data in ((ordered, DATA), (made(samples={"pack": 4}), many)):
        assert "samples.pack" not in names(sampling_parameters(config, data))
    packed = {"samples.pack": PACK, "model.tower": "dssm", "model.history_pooling": "decay"}
    assert changes(packed, ordered) == {"samples.pack": PACK, "model.tower": "sequence"}
    with_order = changes(packed, unordered)
    assert with_order == changes(packed, ordered) | {"features.history.order": "strictly_before"}
    with_changes(unordered, with_order)
    without_order = changes(packed | {"features.history.order": "leave_one_out"}, ordered)
    assert "samples.pack" not in without_order, "packed rows need an order"
    with_changes(ordered, without_order)


def test_actions_of_the_history_are_tried_if_the_feed_has_several_and_the_tower_reads_them() -> None:
    ordered = made(**BEFORE)
    shop = TuningData(rows=27_000, days=6, ranking_logs=False, actions=2)
    assert ACTIONS not in names(sampling_parameters(ordered, DATA))
    assert ACTIONS not in names(sampling_parameters(Config(), shop)), "known items have no actions"
    assert of(sampling_parameters(ordered, shop), ACTIONS).choices == (False, True)
    assert changes({ACTIONS: True, "model.tower": "dssm"}, ordered) == {}
    reads = {ACTIONS: True, "model.tower": "sequence", "model.settings": {"actions": True}}
    assert changes({ACTIONS: True, "model.tower": "sequence"}, ordered) == reads
    config = with_changes(ordered, reads)
    assert changes({ACTIONS: False, "model.tower": "sequence"}, config) == {
        ACTIONS: False,
        "model.settings": {"actions": False},
    }
    with_changes(config, changes({ACTIONS: False}, config))
    unread = made(model={"tower": "sequence"}, features={"history": {"actions": True}})
    assert changes({ACTIONS: True, "model.tower": "sequence"}, unread) == {}, "the config itself changes nothing"


def test_stored_values_become_those_of_the_config() -> None:
    parameter = Parameter("loss.temperature", low=0.03, high=0.5).including(0.0625, 0.07)
    assert parameter.decoded(0.0625) == 0.0625, "the value of the config is not rounded"
    assert parameter.decoded(0.123456) == 0.12
    lists = Parameter("model.hidden", ([], [128])).including([64])
    assert [lists.decoded(encoded(choice)) for choice in lists.choices] == [[], [128], [64]]
