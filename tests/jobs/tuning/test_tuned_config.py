"""The tuned config: the user's file with its comments, and a comment beside each changed value."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import tune
from jobs.common.config import Config, load_config
from jobs.tuning.check import Decision
from jobs.tuning.space import value_of
from jobs.tuning.tail import Tail
from jobs.tuning.tuned_config import MARK, tuned_text
from pipelines.contract.errors import UsageError
from tests.jobs.nightly_run import ROOT

CHANGED: dict[str, Any] = {
    "loss.temperature": 0.12,
    "training.bootstrap_epochs": 4,
    "model.tower": "sequence",
    "model.history_items": None,
    "model.hidden": [128],
    "negatives.uniform": 3,
    "positives.downsample": None,
    "features.history.order": "ahead",
    "positives.ahead_days": 2.0,
    "prior": {"beta": [0.0, 1.0], "half_life_days": [3.0], "unseen_count": 0.5},
}
TAIL = Tail("2024-03-08", "2024-03-07", 7, ["2024-03-08"])
BETTER = Decision(CHANGED, 50, 40, 0.41, 0.43, 0.01, 0.03, {"loss.temperature": -0.005})


@pytest.mark.parametrize("name", ["demo", "grocery", "movielens", "production.example", "recflow"])
def test_all_comments_and_values_survive(name: str, tmp_path: Path) -> None:
    source = ROOT / f"conf/{name}.yaml"
    text = tuned_text(source.read_text(), CHANGED, {key: f"tuned {key}" for key in CHANGED}, ["a", "b"])
    assert text.startswith(f"{MARK}: a\n# b\n")
    for line in source.read_text().splitlines():
        if "# " in line:
            assert line.partition("# ")[2] in text
    expected = load_config(str(source)).model_dump()
    for key, value in CHANGED.items():
        (line,) = [line for line in text.splitlines() if line.partition("# ")[2].split(";")[0] == f"tuned {key}"]
        assert line.strip().startswith(f"{key.rpartition('.')[2]}: "), "the comment is beside its value"
        node: Any = expected
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = value
    (tmp_path / "tuned.yaml").write_text(text)
    assert load_config(str(tmp_path / "tuned.yaml")).model_dump() == expected


def test_files_without_changes_stay_as_they_are() -> None:
    for name in ("demo", "grocery", "movielens", "production.example", "recflow"):
        text = (ROOT / f"conf/{name}.yaml").read_text()
        assert tuned_text(text, {}, {}, ["a"]) == f"{MARK}: a\n{text}"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "model:\n", "model: {dim: 8} # small\n\n# more\nseed: 3\n"])
def test_sections_that_are_missing_or_empty_are_made(text: str) -> None:
    tuned = tuned_text(text, {"model.tower": "senet"}, {"model.tower": "why"}, ["a"])
    assert "tower: senet # why" in tuned
    assert yaml.safe_load(tuned)["model"]["tower"] == "senet"
    assert all(part in tuned for part in ("# small", "# more") if part in text)


def test_a_comment_has_the_old_value_the_figures_and_the_effect_of_the_change_alone() -> None:
    comments = tune.comments(BETTER, Config())
    assert comments["loss.temperature"] == (
        "was 0.15; Recall@50 0.4100 -> 0.4300, gain +0.0200 (95% +0.0100 to +0.0300) in 40 trials; taken back: -0.0050"
    )
    assert tune.header(BETTER, TAIL)[0] == "40 trials, judged by the positives of 2024-03-08."
    uncertain = Decision({}, 50, 40, 0.41, 0.42, -0.01, 0.03)
    assert "not certainly better, so no value has changed: Recall@50 0.4100" in tune.header(uncertain, TAIL)[1]


def test_the_config_and_files_of_others_are_never_overwritten(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("seed: 3\n")
    assert tune.output_path(str(config), None, force=False) == tmp_path / "my.tuned.yaml"
    with pytest.raises(UsageError, match="is the config itself"):
        tune.output_path(str(config), f"{tmp_path}/../{tmp_path.name}/my.yaml", force=True)
    (tmp_path / "other.yaml").write_text("seed: 4\n")
    with pytest.raises(UsageError, match="tune did not write it"):
        tune.output_path(str(config), str(tmp_path / "other.yaml"), force=False)
    (tmp_path / "my.tuned.yaml").write_text(f"{MARK}: earlier\n")
    assert tune.output_path(str(config), None, force=False) == tmp_path / "my.tuned.yaml"


def test_overrides_of_the_command_line_are_not_written(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("model: {dim: 8} # small\n")
    overrides = ["training.batch_size=64", "loss.temperature=0.3"]
    loaded = load_config(str(config), overrides)
    trials: Any = argparse.Namespace(
        tail=TAIL,
        context=argparse.Namespace(
            args=argparse.Namespace(config=str(config), overrides=overrides), config=loaded, ds=TAIL.ds
        ),
    )
    changed = {"loss.temperature": 0.12}
    tune.write_config(trials, Decision(changed, 50, 9, 0.1, 0.2, 0.05, 0.15), tmp_path / "my.tuned.yaml")
    written = load_config(str(tmp_path / "my.tuned.yaml"))
    assert (value_of(written, "loss.temperature"), written.model.dim) == (0.12, 8)
    assert written.training.batch_size == Config().training.batch_size
    assert config.read_text() == "model: {dim: 8} # small\n"
    assert {path.name for path in tmp_path.iterdir()} == {"my.yaml", "my.tuned.yaml"}
