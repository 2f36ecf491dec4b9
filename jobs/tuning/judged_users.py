"""The users that judge trials: their queries at the end of the bootstrap, and what they took in the validation tail."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import functions as F

from jobs.common.runner import Context
from jobs.night.steps import open_night
from jobs.tuning.tail import Tail
from pipelines import queries
from pipelines.contract.errors import InputError
from pipelines.hashing import unit
from pipelines.storage.manifest import digest

LEAST = 20  # users in each half: with fewer, no interval says anything
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class JudgedUsers:
    """B users, in the order of their ids. Half of them judge the trials, the other half only the final check."""

    columns: dict[str, np.ndarray]  # the columns of queries: [B] or [B, length]
    targets: list[Ints]  # per user, the items taken
    excluded: list[Ints]  # per user, the items that the ranking leaves out
    checks_B: npt.NDArray[np.bool_]  # whether the user belongs to the half of the final check
    name: str  # hash of the ids: figures by user are comparable only if it is the same

    def __len__(self) -> int:
        return len(self.checks_B)


def judged_users(context: Context, tail: Tail) -> JudgedUsers:
    """Read the users, at most evaluation.max_users. `context`: the tables of a bootstrap that ends with tail.last.

    Raises InputError if too few users have a target.
    """
    config, night = context.config, open_night(context)
    positives = queries.next_positives(night, config.positives, tail.days) if tail.days else queries.held_out(night)
    new_only = config.evaluation.new_items_only
    wanted, _ = queries.targets(positives, night, new_items_only=new_only, max_users=config.evaluation.max_users)
    wanted = wanted.persist()
    asked = queries.user_queries(night, config.features, wanted.select("user_id"))
    half = (unit("tuned", config.seed, F.col("user_id")) < 0.5).alias("checks")
    frame = asked.join(wanted, on="user_id", how="inner").select("*", half).orderBy("user_id").toPandas()
    wanted.unpersist()
    checks = frame["checks"].to_numpy(bool)
    if min(checks.sum(), (~checks).sum()) < LEAST:
        raise InputError(
            f"the validation tail, {tail.as_text()}, has {len(frame)} users with a target that could be recalled, and tuning "
            f"needs about {3 * LEAST}: name more days with --tail-days, or another ds"
        )
    lists = {name: [np.asarray(items, np.int64) for items in frame[name]] for name in ("targets", "known_items")}
    nothing = np.empty(0, np.int64)
    columns = {name: as_array(frame[name]) for name in frame.columns if name not in ("user_id", "checks", *lists)}
    return JudgedUsers(
        columns,
        lists["targets"],
        lists["known_items"] if new_only else [nothing] * len(frame),
        checks,
        digest([frame["user_id"].tolist(), [items.tolist() for items in lists["targets"]]]),
    )


def as_array(column: Any) -> np.ndarray:
    """A column of numbers as [rows], one of lists of equal length as [rows, length]."""
    values: np.ndarray = column.to_numpy()
    return np.stack([np.asarray(value) for value in values]) if values.dtype == object else values


def pairs(lists: list[Ints]) -> tuple[Ints, Ints]:
    """Lists by user as pairs (user, item)."""
    rows = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    return rows, np.concatenate(lists) if lists else np.empty(0, np.int64)
