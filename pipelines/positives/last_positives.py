"""Interactions without each user's last positive: what may be read before the holdout of `last_positive` is evaluated."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.config import Positives
from pipelines.inputs.contracts import quoted
from pipelines.night import Night
from pipelines.positives import select


def without_last_positives(night: Night, config: Positives, columns: dict[str, str]) -> DataFrame:
    """The rows of interactions of the window, unchanged, but without those of each user's last positive.

    All rows of the same user, item and day are left out: another of them would take the place of the last positive.
    `columns`: our name -> their name in the table.
    """
    days = night.log_days()
    events = select.select_events(select.reward_events(night.inputs.events("interactions", days), config), config)
    _, held_out = select.split_last(events.where(F.col("reason") == select.COUNTS).drop("reason"))
    keys = {f"_{name}": F.col(name) for name in ("user_id", "item_id", "ds")}
    left_out = held_out.select(*[column.alias(key) for key, column in keys.items()]).distinct()
    rows = night.warehouse.read_input(night.inputs.uri("interactions"), days)
    theirs = {f"_{name}": quoted(columns.get(name, name)).cast("string") for name in ("user_id", "item_id")}
    keyed = rows.withColumns({**theirs, "_ds": F.col("ds")})
    return keyed.join(left_out, on=list(keys), how="left_anti").drop(*keys)
