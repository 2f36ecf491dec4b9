"""What the step build_positives reads: the users' tables, checked before anything is written."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines import drift
from pipelines.config import Features
from pipelines.contract.errors import InputError
from pipelines.contract.indices import FIRST
from pipelines.features import encode, item_versions
from pipelines.features.item_versions import ItemDays
from pipelines.inputs.matching_ids import Ids, refuse_other_ids
from pipelines.lost_day import carried_from
from pipelines.night import Night, SampleConfig, log
from pipelines.positives import select

LOOKED_UP = 1000  # items of the night that are looked up in the catalogue, before all are


@dataclass(frozen=True)
class Logs:
    """What the step reads of the users' tables."""

    days: list[str]  # days of interactions
    items: ItemDays  # which items snapshots the days see
    users: dict[str, str | None]  # day of events -> day of the newest users snapshot strictly before it

    @property
    def user_snapshots(self) -> list[str]:
        """The users snapshots needed, oldest first."""
        return sorted({day for day in self.users.values() if day})


@dataclass(frozen=True)
class Inputs:
    """The users' tables after every check: nothing of them is refused any more."""

    events: DataFrame  # the night's positives; persisted
    items: DataFrame  # published items by run of snapshots (item_versions.spans)
    users: dict[str, DataFrame]  # snapshot by day, for user features
    held: DataFrame | None  # each user's last positive, where it is kept out
    counts: dict[str, int]  # interactions whose action counts, and those that are no positives of their own
    persisted: tuple[DataFrame, ...]


def find_logs(night: Night, config: SampleConfig) -> Logs:
    """Which partitions the step reads. InputError where one that it cannot do without is missing."""
    days = night.log_days()
    item_day = night.inputs.snapshot_at("items", night.ds, strictly_before=False)
    if item_day is None:
        raise InputError(
            f"table items ({night.inputs.uri('items')}) has no snapshot at or before ds={night.ds}: write one as "
            "items/ds=YYYY-MM-DD/, or point inputs.items.path at it"
        )
    users = {day: night.inputs.snapshot_at("users", day, strictly_before=True) for day in days}
    if config.features.user and not any(users.values()):
        raise InputError(
            f"table users ({night.inputs.uri('users')}) has no snapshot before the events of ds={night.ds}: features are "
            "taken from the newest snapshot strictly before the day of an event. Write users/ds= for an earlier day"
        )
    return Logs(days, ItemDays.of(night.inputs, [*_days_held_back(night), *days], item_day), users)


def _days_held_back(night: Night) -> list[str]:
    """The day whose last rows the night before held back: they are trained on tonight, and see items as of their own day."""
    if night.yesterday is None or night.warehouse.update:
        return []
    before = night.warehouse.manifest("positives", night.yesterday)
    if before is None or not before.facts.get("counts", {}).get("held_back", before.rows):
        return []
    return [carried_from(before) or night.yesterday]


def refuse_new_meanings(night: Night, features: Features, known: dict[str, Any]) -> None:
    """InputError where a feature would change from a vocabulary to buckets, back, or to another number of them.

    `known`: facts of the vocabularies of the night before.
    """
    before, now = known.get("hashed", {}), encode.hashed_sizes(features)
    wanted = encode.min_counts(features).keys()  # every feature with indices
    changed = [name for name in sorted(wanted) if name in known.get("sizes", {}) and before.get(name) != now.get(name)]
    if changed:
        was, wants = (f"in {m[changed[0]] - FIRST} buckets" if changed[0] in m else "exact" for m in (before, now))
        raise InputError(
            f"table vocabularies ds={night.yesterday}: the indices of {len(changed)} features would change their meaning, "
            f"for example {changed[0]}: {was} until now, {wants} in the config. Take the change of buckets back, or begin "
            "anew with --bootstrap-days N"
        )


def read_inputs(night: Night, config: SampleConfig, logs: Logs, keep_last_out: bool) -> Inputs:
    """Read and check every input. InputError where one of them cannot make a night."""
    interactions = night.inputs.events("interactions", logs.days)
    if update := night.warehouse.update:
        interactions = interactions.where(F.col("event_time") > F.lit(update.since).cast("timestamp"))
    user_side, item_side = encode.sides(config.features)
    snapshots = {day: night.inputs.snapshot("items", day) for day in logs.items.snapshots}
    for snapshot in snapshots.values():
        encode.check_columns(item_side, snapshot)
    users = {day: night.inputs.snapshot("users", day) for day in logs.user_snapshots if user_side.features}
    for snapshot in users.values():
        encode.check_columns(user_side, snapshot)
    items = item_versions.spans(snapshots, item_side, night.end)
    if snapshots[logs.items.newest].where(item_versions.published_by(night.end)).isEmpty():
        raise InputError(
            f"table items, column publish_time: no item of the snapshot ds={logs.items.newest} is published by "
            f"{night.end}, so there is nothing to recall. Correct publish_time, or leave it null where it is not known"
        )
    if warning := logs.items.warning():
        log.warning("%s", warning)
    drift.compare_with_before(night, "positives", night.inputs.facts(), config.checks)

    rewarded = select.reward_events(interactions, config.positives)
    marked = select.select_events(rewarded, config.positives).persist()
    counts, persisted = select.count_selected(marked), [marked]
    try:
        _refuse_selected(night, config, counts)
        if users:
            known = reduce(DataFrame.unionByName, [snapshot.select("user_id") for snapshot in users.values()])
            ids = Ids("interactions", marked), Ids("users", known)
            refuse_other_ids(*ids, "user_id", counts["interactions"], config.checks)
    except InputError:
        marked.unpersist()
        raise
    events, held = marked.where(F.col("reason") == select.COUNTS).drop("reason"), None
    if keep_last_out:
        events, held = select.split_last(events)
        held = held.persist()
        persisted += [held, events.persist()]
        counts["dropped_held_out"] = held.count()
    if len(snapshots) > 1:
        persisted.append(items.persist())
    return Inputs(events, items, users, held, counts, tuple(persisted))


def _refuse_selected(night: Night, config: SampleConfig, counts: dict[str, int]) -> None:
    """InputError where the interactions leave no positive, or came twice."""
    if not counts["interactions"]:
        raise InputError(
            f"table interactions, column action: no row of ds={night.ds} has an action among "
            f"{sorted(config.positives.actions)}. Name the actions that count under positives.actions"
        )
    if counts["interactions"] == counts["dropped_unrewarded"]:
        raise InputError(
            f"table interactions, column reward: all {counts['interactions']} rows of ds={night.ds} whose action counts "
            "have a reward of 0. Check the column, and the rewards under positives.actions"
        )
    drift.refuse_repeats(counts["dropped_repeated"], counts["interactions"], config.checks)


def refuse_other_items(night: Night, inputs: Inputs, item_days: DataFrame, logs: Logs) -> None:
    """InputError where no item of the night's positives is in any items snapshot that the night reads.

    `item_days`: of popularity.count_days.
    """
    for some in (item_days.limit(LOOKED_UP), item_days):  # nearly always the first few suffice
        wanted = some.select("item_id").distinct()
        if not inputs.items.join(wanted, on="item_id", how="left_semi").isEmpty():
            return
    row = item_days.agg(F.sum("count").alias("rows"), F.min("item_id").alias("example")).first()
    known = inputs.items.agg(F.min("item_id").alias("example")).first()
    assert row is not None
    assert known is not None
    read = logs.items.snapshots
    place = (
        f"the snapshot ds={read[0]}"
        if len(read) == 1
        else f"any of the {len(read)} snapshots ds={read[0]} to {read[-1]}"
    )
    raise InputError(
        f"table interactions, column item_id: none of the items of {row['rows']} positives up to ds={night.ds} is in {place} "
        f"of items and published, for example {row['example']!r}; items has {known['example']!r}. Every "
        "positive would be dropped. Check that both tables are of one product and write item_id alike"
    )
