"""The validation tail: its days, what it refuses, and the interactions without each user's last positive."""

import pytest
from pyspark.sql import functions as F

from jobs.common.config import Config
from jobs.tuning.tail import Tail, plan_tail
from pipelines.config import Inputs
from pipelines.contract.errors import InputError, UsageError
from pipelines.night import Night
from pipelines.positives.last_positives import without_last_positives
from pipelines.storage.warehouse import Warehouse
from tests.two_nights import CONFIG, FIRST, logs

DAYS = [f"2024-03-{day:02d}" for day in range(1, 11)]


def config(**evaluation: object) -> Config:
    return Config.model_validate({"evaluation": evaluation})


def test_the_tail_is_before_or_at_ds_and_after_the_days_to_train_on() -> None:
    assert plan_tail(DAYS, "", config(), "2024-03-08") == Tail("2024-03-08", "2024-03-07", 7, ["2024-03-08"])
    three = plan_tail(DAYS, "", config(days=3), "2024-03-08")
    assert (three.last, three.bootstrap_days, three.days) == ("2024-03-05", 5, DAYS[5:8])
    assert plan_tail(DAYS, "", config(days=3), "2024-03-08", tail_days=1).days == ["2024-03-08"]
    window = plan_tail(DAYS, "", config(), "2024-03-08", window=4)
    assert (window.last, window.bootstrap_days) == ("2024-03-07", 3)


def test_last_positive_trains_on_all_days() -> None:
    assert plan_tail(DAYS, "", config(split="last_positive"), "2024-03-08") == Tail("2024-03-08", "2024-03-08", 8, [])
    with pytest.raises(UsageError, match=r"--tail-days.*last_positive"):
        plan_tail(DAYS, "", config(split="last_positive"), "2024-03-08", tail_days=2)


def test_too_few_days_are_refused() -> None:
    with pytest.raises(InputError, match="table interactions has no partition up to ds=2024-02-28"):
        plan_tail(DAYS, "table interactions", config(), "2024-02-28")
    with pytest.raises(
        UsageError, match=r"no day is left to train on: name a later ds, or fewer days with --tail-days"
    ):
        plan_tail(DAYS, "table interactions", config(days=8), "2024-03-08")
    with pytest.raises(InputError, match="no partition from 2024-03-14 to 2024-03-15, the validation tail"):
        plan_tail(DAYS, "table interactions", config(days=2), "2024-03-15")


def test_only_the_last_positive_of_each_user_is_removed(nights: Warehouse) -> None:
    night = Night.open(nights, Inputs(), FIRST, 17, 2, features=CONFIG.features)
    rows = without_last_positives(night, CONFIG.positives, {})
    assert "ds" in rows.columns
    assert "device" in rows.columns, "columns of the user stay"
    remaining = {
        (row["ds"], row["user_id"], row["item_id"], row["event_time"], row["action"])
        for row in rows.select("ds", "user_id", "item_id", "event_time", "action").collect()
    }
    read = {row[:5] for row in logs()[0] if row[0] <= FIRST}
    assert remaining < read
    for user in {row[1] for row in read}:
        clicks = sorted((row for row in read if row[1] == user and row[4] == "click"), key=lambda row: row[3])
        removed = {row for row in read - remaining if row[1] == user}
        if len({row[:3] for row in clicks}) > 1:
            latest = {row[:3] for row in clicks if row[3] == clicks[-1][3]}
            assert len({row[:3] for row in removed}) == 1
            assert {row[:3] for row in removed} <= latest
        else:
            assert not removed, "a user with one positive has none held out"
    assert rows.where(F.col("ds") > FIRST).isEmpty()
