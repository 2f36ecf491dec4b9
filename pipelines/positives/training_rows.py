"""Writes `positives` and `item_stats`: the training rows of the night, and the statistics of the items in them."""

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.contract.indices import DEFAULT
from pipelines.features import encode, item_versions
from pipelines.features.feature_schema import ACTION_INDEX
from pipelines.inputs.contracts import CONTEXT_STRUCT
from pipelines.joins import broadcast_few, broadcast_small
from pipelines.night import log
from pipelines.positives import checks, popularity, select
from pipelines.positives.held_back import carry_held_back, held_back_rows
from pipelines.positives.step import PositivesStep, persisted
from pipelines.positives.users import with_action_index, with_user_features, with_user_index
from pipelines.positives.vocabularies import Vocabularies
from pipelines.storage.manifest import Manifest


def write_positives_and_stats(step: PositivesStep, vocabularies: Vocabularies) -> Manifest:
    """Write both tables. Returns the manifest of `positives`."""
    ds, window_days = step.night.ds, step.config.positives.window_days
    indexed_days = step.item_days.join(vocabularies.item_indices(), on="item_id", how="inner")
    rolled = popularity.roll_counts(indexed_days, step.read_previous("item_stats"), ds, window_days)
    live = item_versions.live_days(step.item_days, step.inputs.items, step.days.items)
    with persisted(rolled) as counts, persisted(live) as live_days:
        if step.night.yesterday:
            total = counts.agg(F.sum("window_count").alias("total"))
            window = counts.select("item_index", F.lit(ds).alias("ds"), "window_count")
            counts_of_days, rows = window.crossJoin(broadcast_few(total)), vocabularies.sizes["item_id"]
        else:
            counts_of_days, rows = popularity.counts_of_days(indexed_days, window_days), step.item_days.count()
        chances = select.item_chances(vocabularies.item_indices(), counts_of_days, live_days, step.config.positives)
        chosen, heaviest = _choose(step, broadcast_small(chances, rows))
        facts = item_versions.facts_of(live_days, step.days.items)
        manifest = _write_positives(step, vocabularies, chosen, heaviest, facts)
        _write_item_stats(step, vocabularies, counts)
    return manifest


def _choose(step: PositivesStep, chances: DataFrame) -> tuple[DataFrame, dict[str, Any]]:
    """(events with `dropped` and item_snapshot, the heaviest user and item). `chances`: from select.item_chances."""
    config, seed = step.config.positives, step.night.seed
    flagged = select.flag(step.inputs.events, chances, config, seed, step.read_previous("user_histories"))
    heaviest, over_cap = select.heavy_days(flagged, config)
    heaviest |= select.heaviest_item(step.item_days)
    chosen = select.choose(flagged, config, seed, over_cap)
    return chosen.withColumn("item_snapshot", step.days.items.snapshot_of(F.col("ds"))), heaviest


def _write_positives(
    step: PositivesStep,
    vocabularies: Vocabularies,
    chosen: DataFrame,
    heaviest: dict[str, Any],
    snapshot_facts: dict[str, Any],
) -> Manifest:
    """Write `positives`. The rows are checked before they are moved into place."""
    night, counts = step.night, step.inputs.counts
    rows = _finish(step, vocabularies, chosen)
    expected = counts
    if step.held_back:
        held_back = held_back_rows(step.held_back)
        expected = counts if held_back is None else counts | {"held_back_before": held_back}
        rows = rows.unionByName(carry_held_back(step, vocabularies, rows))

    def check(staged: DataFrame, _: str) -> dict[str, Any]:
        written = counts | checks.check_rows(staged, expected)
        log.info("positives %s: %s", night.ds, ", ".join(f"{name} {value:,}" for name, value in written.items()))
        return {
            "counts": written,
            "skew": select.skew(written["positives"], heaviest),
            "schema": vocabularies.schema,
            "bootstrap_days": night.bootstrap_days,
            "input": night.inputs.facts(),
            **snapshot_facts,
        }

    return step.write(rows, "positives", facts=check)


def _finish(step: PositivesStep, vocabularies: Vocabularies, chosen: DataFrame) -> DataFrame:
    """The chosen events of this night with the columns of `positives`."""
    rows = with_user_features(chosen, step, vocabularies)
    user_index = F.coalesce("user_index", F.lit(DEFAULT))
    rows = with_user_index(rows, step, vocabularies).withColumn("user_index", user_index)
    columns = ["row_key", "user_id", "item_id", "request_id", "event_time", "user_index", "item_index"]
    columns += [*step.user_side.encoded_columns(), *step.context_side.encoded_columns()]
    columns += ["item_snapshot", "example_age", "weight", "keep_probability", "dropped", "split", "carried"]
    rows = with_action_index(with_context(rows, step, vocabularies), vocabularies)
    columns += [name for name in rows.columns if name == ACTION_INDEX]
    finished = select.finish(rows, step.config.positives, step.night.ds)
    return finished.withColumn("carried", F.lit(False)).select(*columns)


def with_context(rows: DataFrame, step: PositivesStep, vocabularies: Vocabularies) -> DataFrame:
    """Adds the encoded features of the request, as they were at event time. `rows`: row_key, user_id, CONTEXT_STRUCT, ..."""
    side = step.context_side
    if not side.features:
        return rows
    kept = [name for name in rows.columns if name != CONTEXT_STRUCT]
    # The user id separates rows whose keys, which are hashes, collide.
    row = ("row_key", "user_id")
    return encode.encode(side, rows, vocabularies.table, vocabularies.statistics, kept, vocabularies.sizes, row)


def _write_item_stats(step: PositivesStep, vocabularies: Vocabularies, counts: DataFrame) -> None:
    """Write `item_stats`. Requires `positives` of this ds. `counts`: from popularity.roll_counts."""
    ids, snapshots = vocabularies.item_indices(), step.days.items
    listed = item_versions.current(step.inputs.items, snapshots.newest).join(ids, on="item_id", how="inner")
    trained = step.read("positives").where("split = 'train'")
    config = step.config
    stats = popularity.describe_items(
        ids,
        counts,
        trained,
        listed.select("item_index"),
        config.positives.downsample,
        config.negatives.popularity_exponent,
        step.night.ds,
    )
    step.write(stats, "item_stats")
