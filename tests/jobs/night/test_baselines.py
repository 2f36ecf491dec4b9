"""The best window of popularity, and the margin of the model over the best baseline, from recalls of users."""

import logging

import numpy as np
import pandas as pd
import pytest

from jobs.common.config import Evaluation
from jobs.evaluate import _warn_unless_certain
from jobs.inference.score import distinct_windows
from jobs.night.baselines import margin_of, with_best_popularity
from jobs.night.evaluations import question_of
from jobs.night.margin import Margin

USERS, K = 400, 50
POPULAR = {"popularity_1d": 0.20, "popularity_7d": 0.30, "popularity_30d": 0.10}


def scored(**recalls: float) -> pd.DataFrame:
    """Per-user metrics of each model with about this Recall@50, and of another cut-off and slice that must not count."""
    rng, frames = np.random.default_rng(1), []
    users = [f"u{number}" for number in range(USERS)]
    for model, recall in (POPULAR | recalls).items():
        hits = (rng.random(USERS) < recall).astype(float)
        for part, k, values in (("all", K, hits), ("all", 10, 1 - hits), ("tail", K, 1 - hits)):
            frames.append(
                pd.DataFrame({"user_id": users, "model": model, "slice": part, "k": k, "recall": values}).sample(
                    frac=1, random_state=rng
                )
            )
    return pd.concat(frames)


def margin(**recalls: float) -> Margin:
    return margin_of(with_best_popularity(scored(**recalls), K)[0], K, samples=200, seed=17)


def warnings_of(margin: Margin, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(logging.getLogger("nightjar"), "propagate", True)
    _warn_unless_certain("2024-03-04", margin)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_window_with_the_highest_recall_is_the_popularity_baseline() -> None:
    rows, facts = with_best_popularity(scored(two_tower=0.5, item_cf=0.1), K)
    assert set(rows["model"]) == {"popularity", "two_tower", "item_cf"}
    assert facts["days"] == 7
    assert facts["recall"].keys() == {"1", "7", "30"}
    best = rows[(rows["model"] == "popularity") & (rows["slice"] == "all") & (rows["k"] == K)]
    assert best["recall"].mean() == facts["recall"]["7"] == max(facts["recall"].values())


def test_of_equal_windows_the_shortest_is_kept() -> None:
    rows = scored(two_tower=0.5, item_cf=0.1)
    rows["recall"] = 0.5
    assert with_best_popularity(rows, K)[1]["days"] == 1


def test_a_model_that_popularity_beats_gives_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = margin(two_tower=0.2, item_cf=0.1)
    assert (measured.baseline, measured.users, measured.certain) == ("popularity", USERS, False)
    assert measured.low is not None
    assert measured.high is not None
    assert measured.low < measured.difference < measured.high < 0
    (warning,) = warnings_of(measured, caplog, monkeypatch)
    assert "2024-03-04: two_tower is not certainly better than popularity: Recall@50" in warning


def test_a_gain_that_may_be_chance_gives_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = margin(two_tower=0.52, item_cf=0.5)
    assert measured.baseline == "item_cf"
    assert not measured.certain
    assert len(warnings_of(measured, caplog, monkeypatch)) == 1


def test_a_model_that_is_certainly_better_gives_no_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = margin(two_tower=0.6, item_cf=0.35)
    assert measured.certain
    assert measured.line().startswith("two_tower is certainly better than item_cf: ")
    assert warnings_of(measured, caplog, monkeypatch) == []


def test_without_resamples_nothing_is_certain() -> None:
    rows = with_best_popularity(scored(two_tower=0.9, item_cf=0.1), K)[0]
    measured = margin_of(rows, K, samples=0, seed=17)
    assert (measured.low, measured.certain) == (None, False)
    assert "evaluation.bootstrap_samples is 0" in measured.line()


@pytest.mark.parametrize(
    ("settings", "days", "question"),
    [
        ({}, ["2024-03-05"], "positives of the next day, items new to the user"),
        ({"days": 7, "new_items_only": False}, ["x"] * 7, "positives of the next 7 days, all items"),
        ({"days": 7}, ["x"] * 2, "positives of the next 7 days (logs of 2 so far), items new to the user"),
        (
            {"split": "last_positive"},
            [],
            "next positive of each user (the last one, held out), items new to the user",
        ),
    ],
)
def test_the_question_of_an_evaluation(settings: dict[str, object], days: list[str], question: str) -> None:
    assert question_of(Evaluation.model_validate(settings), days) == question


def test_windows_that_cover_the_whole_history_count_once() -> None:
    assert distinct_windows((30, 1, 7), 40) == (1, 7, 30)
    assert distinct_windows((30, 1, 7), 7) == (1, 7)
    assert distinct_windows((30, 14), 3) == (14,)


def test_one_number_of_popularity_days_is_one_window() -> None:
    assert Evaluation.model_validate({"popularity_days": 30}).popularity_days == [30]
    with pytest.raises(ValueError, match="listed twice"):
        Evaluation.model_validate({"popularity_days": [7, 7]})
