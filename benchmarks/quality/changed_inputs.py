"""Input tables of a simulated world, changed for a rung of the ladder that no setting of the product reaches.

A changed table lies in the warehouse of its variant, which reads the other tables of the world as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.config import Config
from pipelines.storage.warehouse import Warehouse

# Length of the noise in the vector of an item, relative to its taste. Category and tags explain nine tenths of the variance of
# tastes, and with noise of the same length as the taste the vector says little more.
NOISE = 0.3


def shown_as_dropped(world: Warehouse, _: Config) -> DataFrame:
    """ranking_logs in which what a request showed without a click has the stage `rerank`, as if it had not been shown.

    What really has this stage becomes `fine`. So `negatives.fine_stages=[rerank]` draws the items that were shown and not
    clicked, which the product refuses (`negatives.fine_stages` may not name `exposed`).
    """
    logs, clicks = _table(world, "ranking_logs"), _table(world, "interactions")
    clicked = clicks.select("request_id", "item_id").distinct().withColumn("clicked", F.lit(True))
    stage = F.when(F.col("stage") == "rerank", "fine")
    stage = stage.when((F.col("stage") == "exposed") & F.col("clicked").isNull(), "rerank").otherwise(F.col("stage"))
    return logs.join(clicked, on=["request_id", "item_id"], how="left").withColumn("stage", stage).drop("clicked")


def items_with_vectors(world: Warehouse, config: Config) -> DataFrame:
    """items with the column `content`: the item's true taste plus noise (NOISE), scaled to length 1.

    A stand-in for the vector of a text or an image: it says much of the item, also of one that nobody has clicked yet.
    """
    truth = _table(world, "sim_truth_items").toPandas().sort_values("item_id")
    taste_Md = np.stack(truth["taste"].to_numpy())
    noise_Md = np.random.default_rng(config.seed).normal(0.0, NOISE * taste_Md.shape[1] ** -0.5, taste_Md.shape)
    content_Md = taste_Md + noise_Md
    content_Md /= np.linalg.norm(content_Md, axis=1, keepdims=True)
    rows = pd.DataFrame({"item_id": truth["item_id"], "content": content_Md.tolist()})
    vectors = world.spark.createDataFrame(rows, "item_id bigint, content array<float>")
    return _table(world, "items").join(vectors, on="item_id", how="inner")


@dataclass(frozen=True)
class ChangedInput:
    """The table that is changed, and how: a function of the world's warehouse and config."""

    table: str
    change: Callable[[Warehouse, Config], DataFrame]


CHANGES = {
    "shown_as_dropped": ChangedInput("ranking_logs", shown_as_dropped),
    "items_with_vectors": ChangedInput("items", items_with_vectors),
}


def write(name: str, world: Warehouse, warehouse: Warehouse, config: Config) -> None:
    """Write the changed table of CHANGES[name] to the warehouse of a variant, unless it is there."""
    changed = CHANGES[name]
    if not warehouse.input_days(warehouse.path(changed.table)):
        warehouse.write_input(changed.change(world, config), changed.table)


def _table(world: Warehouse, table: str) -> DataFrame:
    """All days of an input table of the world."""
    uri = world.path(table)
    return world.read_input(uri, world.input_days(uri))
