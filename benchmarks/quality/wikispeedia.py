"""Wikispeedia as input tables: a link is an interaction of its source article (the user) with its target (the item).

Links have no time. The seed of the config holds out a tenth of them, by hash, as those of the day that is asked about. Of the
others a tenth (by the next seed) has the day before, so that a validation on the last known day asks the same question.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.links import FIRST, Graph
from benchmarks.support import say
from jobs.common.runner import Context
from pipelines.storage.import_receipt import ImportReceipt

SNAPSHOT, DAYS = "2023-12-31", ("2024-01-01", "2024-01-02", "2024-01-03")
FILES = ("links.tsv", "categories.tsv")


def write_links(context: Context, validation: bool = False) -> None:
    """Write interactions, users and items from the folder in `source`.

    `validation`: without the links of the day that is asked about, so that the day before takes its place.
    """
    folder = Path(context.args.source)
    first = context.config.seed + validation
    receipt = ImportReceipt(
        context.warehouse, "quality_wikispeedia", [first, *((folder / f).stat().st_size for f in FILES)]
    )
    if receipt.done() and not context.force:
        return
    graph = Graph.read(folder, first)
    links = dated_links(graph, Graph.read(folder, first + 1).held_out)
    if validation:
        links = links[~Graph.read(folder, context.config.seed).held_out]
    spark = context.spark
    items = spark.createDataFrame(articles(graph), "item_id long, categories array<string>, ds string")
    users = spark.createDataFrame(
        articles(graph).rename(columns={"item_id": "user_id"}), "user_id long, categories array<string>, ds string"
    )
    schema = "user_id long, item_id long, event_time timestamp, action string, ds string"
    receipt.write({"interactions": spark.createDataFrame(links, schema), "items": items, "users": users})
    say(f"{len(links):,} links among {graph.articles:,} articles")


def dated_links(graph: Graph, also_late: np.ndarray) -> pd.DataFrame:
    """The links as interactions. `also_late` [links]: links that have the last known day, unless they are held out."""
    day = np.where(graph.held_out, 2, np.where(also_late, 1, 0))
    ds = np.array(DAYS)[day]
    # Any order within a day: the histories of the config ignore it.
    seconds = np.random.default_rng(0).permutation(len(day)) % 86_400
    return pd.DataFrame(
        {
            "user_id": graph.source,
            "item_id": graph.target,
            "event_time": pd.to_datetime(ds) + pd.to_timedelta(seconds, unit="s"),
            "action": "link",
            "ds": ds,
        }
    )


def articles(graph: Graph) -> pd.DataFrame:
    """The articles with their categories."""
    names = [[f"category_{c}" for c in row if c >= FIRST] for row in graph.categories_MC.tolist()]
    return pd.DataFrame({"item_id": np.arange(graph.articles), "categories": names, "ds": SNAPSHOT})
