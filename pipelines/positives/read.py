"""Reads the inputs of the step build_positives, and checks them before anything is written."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines import drift
from pipelines.contract.errors import InputError
from pipelines.contract.indices import FIRST
from pipelines.feature_config import Features
from pipelines.features import item_versions
from pipelines.features.item_versions import ItemSnapshots
from pipelines.features.side import Side, check_columns, context_side, hashed_sizes, min_counts, sides
from pipelines.inputs.contracts import CONTEXT_STRUCT
from pipelines.inputs.matching_ids import TableIds, refuse_mismatched_ids
from pipelines.lost_day import carried_from
from pipelines.night import Night, SampleConfig, log
from pipelines.positives import select
from pipelines.positives.item_popularity import with_popularity

LOOKED_UP = 1000  # items of the night to look up in the catalogue before all of them are


@dataclass(frozen=True)
class InputDays:
    """The partitions of the input tables that the step reads."""

    interactions: list[str]
    items: ItemSnapshots
    users: dict[str, str | None]  # day of events -> the newest users snapshot strictly before that day

    @property
    def user_snapshots(self) -> list[str]:
        """The users snapshots to read, oldest first."""
        return sorted({day for day in self.users.values() if day})


@dataclass(frozen=True)
class NightInputs:
    """The input tables of a night. They have passed every check but `refuse_other_items`."""

    events: DataFrame  # the positives of the night; persisted
    items: DataFrame  # published items by run of snapshots (item_versions.spans)
    users: dict[str, DataFrame]  # users snapshots by day; empty if no feature of users is configured
    held_out: DataFrame | None  # the last positive of each user, if the config keeps it out of training
    counts: dict[str, int]  # interactions whose action counts, and how many of them are dropped_...
    persisted: tuple[DataFrame, ...]

    def unpersist(self) -> None:
        """Free the memory of the persisted frames."""
        for frame in self.persisted:
            frame.unpersist()


def find_days(night: Night, config: SampleConfig) -> InputDays:
    """Find the partitions to read. Raises InputError if a required one is missing."""
    days = night.log_days()
    newest = night.inputs.snapshot_at("items", night.ds, strictly_before=False)
    if newest is None:
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
    return InputDays(days, ItemSnapshots.of(night.inputs, [*_days_held_back(night), *days], newest), users)


def _days_held_back(night: Night) -> list[str]:
    """The day of the rows that the night before held back, if any: tonight trains on them with the items of that day."""
    if night.yesterday is None or night.warehouse.update:
        return []
    before = night.warehouse.manifest("positives", night.yesterday)
    if before is None or not before.facts.get("counts", {}).get("held_back", before.rows):
        return []
    return [carried_from(before) or night.yesterday]


def refuse_changed_buckets(night: Night, features: Features, previous_facts: dict[str, Any]) -> None:
    """Raises InputError if a feature changes between vocabulary and buckets, or changes its number of buckets.

    `previous_facts`: facts of the vocabularies of the night before.
    """
    before, now = previous_facts.get("hashed", {}), hashed_sizes(features)
    indexed = min_counts(features).keys()
    used = previous_facts.get("sizes", {})
    changed = [name for name in sorted(indexed) if name in used and before.get(name) != now.get(name)]
    if changed:
        name = changed[0]
        was, wanted = (f"in {hashed[name] - FIRST} buckets" if name in hashed else "exact" for hashed in (before, now))
        raise InputError(
            f"table vocabularies ds={night.yesterday}: the indices of {len(changed)} features would change their meaning, "
            f"for example {name}: {was} until now, {wanted} in the config. Undo the change of buckets, or start again with "
            "--bootstrap-days N"
        )


def read_inputs(night: Night, config: SampleConfig, days: InputDays, keep_last_out: bool) -> NightInputs:
    """Read and check the input tables. Raises InputError if one of them does not suffice for a night."""
    interactions = _read_interactions(night, config, days.interactions)
    if update := night.warehouse.update:
        interactions = interactions.where(F.col("event_time") > F.lit(update.since).cast("timestamp"))
    snapshots = _read_items(night, config, days.items)
    users = _read_users(night, config, days.user_snapshots)
    drift.compare_with_before(night, "positives", night.inputs.facts(), config.checks)

    history = config.features.history
    with_action = history is not None and history.actions
    rewarded = select.reward_events(interactions, config.positives, with_action=with_action)
    marked = select.select_events(rewarded, config.positives).persist()
    counts, persisted = select.count_selected(marked), [marked]
    try:
        _refuse_selected(night, config, counts)
        if users:
            user_ids = reduce(DataFrame.unionByName, [snapshot.select("user_id") for snapshot in users.values()])
            ids = TableIds("interactions", marked), TableIds("users", user_ids)
            refuse_mismatched_ids(*ids, "user_id", counts["interactions"], config.checks)
    except InputError:
        marked.unpersist()
        raise
    events, held_out = marked.where(F.col("reason") == select.COUNTS).drop("reason"), None
    if keep_last_out:
        events, held_out = select.split_last(events)
        held_out = held_out.persist()
        persisted += [held_out, events.persist()]
        counts["dropped_held_out"] = held_out.count()
    snapshots = with_popularity(snapshots, days.items, config.features, events, night)
    items = item_versions.spans(snapshots, sides(config.features)[1], night.end)
    if len(days.items.to_read) > 1 or config.features.item_popularity:
        persisted.append(items.persist())
    return NightInputs(events, items, users, held_out, counts, tuple(persisted))


def _read_interactions(night: Night, config: SampleConfig, days: list[str]) -> DataFrame:
    """Interactions of these days, with the struct CONTEXT_STRUCT if the config has features of requests that need columns."""
    interactions = night.inputs.events("interactions", days, context=True)
    side = context_side(config.features)
    columns = interactions.select(f"{CONTEXT_STRUCT}.*") if CONTEXT_STRUCT in interactions.columns else interactions
    check_columns(side, columns)
    return interactions


def _read_items(night: Night, config: SampleConfig, days: ItemSnapshots) -> dict[str, DataFrame]:
    """Items snapshots by day."""
    side = Side("item", config.features.item)
    snapshots = {day: night.inputs.snapshot("items", day) for day in days.to_read}
    for snapshot in snapshots.values():
        check_columns(side, snapshot)
    if snapshots[days.newest].where(item_versions.published_by(night.end)).isEmpty():
        raise InputError(
            f"table items, column publish_time: no item of the snapshot ds={days.newest} is published by "
            f"{night.end}, so there is nothing to recall. Correct publish_time, or leave it null where it is not known"
        )
    if warning := days.warning():
        log.warning("%s", warning)
    return snapshots


def _read_users(night: Night, config: SampleConfig, days: list[str]) -> dict[str, DataFrame]:
    """Users snapshots by day; empty if no feature of users is configured."""
    side = sides(config.features)[0]
    snapshots = {day: night.inputs.snapshot("users", day) for day in days if side.features}
    for snapshot in snapshots.values():
        check_columns(side, snapshot)
    return snapshots


def _refuse_selected(night: Night, config: SampleConfig, counts: dict[str, int]) -> None:
    """Raises InputError if no interaction is a positive, or if too many are repeated."""
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


def refuse_other_items(night: Night, inputs: NightInputs, item_days: DataFrame, days: InputDays) -> None:
    """Raises InputError if the items snapshots contain no item of the positives of the night.

    `item_days`: from popularity.count_days.
    """
    for some in (item_days.limit(LOOKED_UP), item_days):  # the first few nearly always suffice
        wanted = some.select("item_id").distinct()
        if not inputs.items.join(wanted, on="item_id", how="left_semi").isEmpty():
            return
    row = item_days.agg(F.sum("count").alias("rows"), F.min("item_id").alias("example")).first()
    listed = inputs.items.agg(F.min("item_id").alias("example")).first()
    assert row is not None
    assert listed is not None
    snapshots = days.items.to_read
    place = (
        f"the snapshot ds={snapshots[0]}"
        if len(snapshots) == 1
        else f"any of the {len(snapshots)} snapshots ds={snapshots[0]} to {snapshots[-1]}"
    )
    raise InputError(
        f"table interactions, column item_id: none of the items of {row['rows']} positives up to ds={night.ds} is in {place} "
        f"of items and published, for example {row['example']!r}; items has {listed['example']!r}. Every "
        "positive would be dropped. Check that both tables are of one product and write item_id alike"
    )
