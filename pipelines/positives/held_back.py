"""Rows that the night before held back for validation: tonight trains on them."""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipelines.feature_config import (
    ContextFeatureConfig,
    FeatureConfig,
    MultiCategoricalFeatureConfig,
    VectorFeatureConfig,
)
from pipelines.features import encode
from pipelines.features.feature_schema import ACTION_INDEX
from pipelines.features.side import Side
from pipelines.histories.user_histories import action_of
from pipelines.joins import broadcast_small
from pipelines.night import Night
from pipelines.positives import select
from pipelines.positives.step import PositivesStep
from pipelines.positives.vocabularies import Vocabularies
from pipelines.storage.manifest import Manifest


def held_back_positives(night: Night) -> Manifest | None:
    """The manifest of the positives of the night before, if that night held rows back from training; else None.

    None for updates within the day: each update trains only on events after the one before it, in order of time.
    """
    if night.yesterday is None or night.warehouse.update:
        return None
    manifest = night.warehouse.require(
        "positives",
        night.yesterday,
        f"its last hours are trained on tonight. Run build_positives for ds={night.yesterday}",
    )
    rows = held_back_rows(manifest)
    if rows is None:
        rows = night.warehouse.read("positives", night.yesterday).where("split = 'valid'").count()
    return manifest if rows else None


def held_back_rows(manifest: Manifest) -> int | None:
    """The number of rows that were held back; None if an earlier version wrote the manifest."""
    rows = manifest.facts.get("counts", {}).get("held_back")
    return None if rows is None else int(rows)


def carry_held_back(step: PositivesStep, vocabularies: Vocabularies, tonight: DataFrame) -> DataFrame:
    """The rows that the night before held back, as training rows with the columns of `tonight`.

    A row keeps the features that the night before encoded. A feature that is new, or whose type has changed, gets the
    value of a user without a snapshot or of no request, like a vector of another length. Lists are cut or padded to the
    length of tonight.
    """
    night, config = step.night, step.config
    assert night.yesterday is not None
    assert step.held_back is not None
    rows = night.warehouse.read("positives", night.yesterday).where("split = 'valid'")
    if "item_snapshot" not in rows.columns:  # written by an earlier version
        rows = rows.withColumn("item_snapshot", step.days.items.snapshot_of(F.lit(night.ds)))
    # The items include those of the snapshots that the rows' own day sees, so also items that have left since.
    wanted = broadcast_small(rows.select("item_id").distinct(), held_back_rows(step.held_back))
    described = step.inputs.items.select("item_id").join(wanted, on="item_id", how="left_semi").distinct()
    if ACTION_INDEX in tonight.columns:
        rows = rows.withColumn(ACTION_INDEX, action_of(rows))
    rows = select.carry(rows, described, config.positives, night.ds)
    sides = (step.user_side, step.context_side)
    blanks = {name: blank for s in sides for name, blank in encode.without_snapshot(s, vocabularies.statistics).items()}
    types, now = dict(rows.dtypes), dict(tonight.dtypes)
    for column, blank in blanks.items():
        if types.get(column) != now[column]:
            rows = rows.withColumn(column, blank)
        elif now[column].startswith("array"):
            feature = _feature_of(sides, column)
            if isinstance(feature, MultiCategoricalFeatureConfig):
                element = now[column].removeprefix("array<").removesuffix(">")
                rows = rows.withColumn(column, encode.pad(F.col(column), feature.max_values, element))
            elif isinstance(feature, VectorFeatureConfig):
                same = F.size(column) == feature.length
                rows = rows.withColumn(column, F.when(same, F.col(column)).otherwise(blank))
    return rows.select(*tonight.columns)


def _feature_of(sides: Sequence[Side], column: str) -> FeatureConfig | ContextFeatureConfig:
    """The feature of an encoded column."""
    features = [(side.column(feature), feature) for side in sides for feature in side.features]
    return next(feature for name, feature in features if column in (name, f"{name}_weights"))
