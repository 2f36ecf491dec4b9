"""Measures the effect of logQ correction on link prediction between articles, at several temperatures.

    python -m benchmarks.links FOLDER            # FOLDER holds links.tsv and categories.tsv of Wikispeedia
                                                 # prints a table, last line JSON

Follows the Wikipedia experiment of Yi et al. (RecSys 2019, table 2): the source article of a link is the user, the target
article is the item. A hash of link and seed holds out 10% of the links. The other links train DSSM towers over ids and
categories with in-batch negatives, with the files, reader, masks and loss of a night. Recall@K ranks all articles except
training targets of the source, and is the mean over sources with held-out links.

`plain` has no correction. All rows of a column have the same seeds, samples, order and number of epochs.

Shapes: M articles.
"""

import argparse
import hashlib
import itertools
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.support import say
from model.config import LossConfig, ModelConfig, TrainingConfig
from model.data.petastorm_reader import SampleFile
from model.evaluation.ranking_metrics import ranking_metrics, top_k
from model.serving.embed import embed_items, embed_users
from model.training.checkpoint import load_checkpoint
from model.training.launch import launch
from model.training.spec import TrainingSpec
from pipelines.contract.schema import FeatureSchema

FIRST = 2  # index of the first article: 0 is padding, 1 is default
CATEGORIES = 4  # most categories used per article; most articles have one or two
HELD_OUT = 0.1
KS = (10, 50, 100)
TEMPERATURES = (0.05, 0.07, 0.14)
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"correction": "none"},
    "classic": {"correction": "classic"},
    "mns": {"correction": "mns"},
    "revisited": {"correction": "revisited"},
    "classic, streaming": {"correction": "classic", "frequencies": "streaming"},
}
FILES = 16
BATCH, EPOCHS = 1024, 8


@dataclass(frozen=True)
class Graph:
    """Links as positions of articles, and the categories of each article (0-padded indices)."""

    source: np.ndarray
    target: np.ndarray
    categories_MC: np.ndarray
    held_out: np.ndarray  # bool, one per link

    @classmethod
    def read(cls, folder: Path, seed: int) -> "Graph":
        """Read both files. Names are URL-encoded; lines with # are comments."""
        links = pd.read_csv(folder / "links.tsv", sep="\t", comment="#", names=["source", "target"]).drop_duplicates()
        names = np.unique(links.to_numpy().ravel())
        place = {name: number for number, name in enumerate(names)}
        topics = pd.read_csv(folder / "categories.tsv", sep="\t", comment="#", names=["article", "category"])
        topics = topics[topics["article"].isin(place)]
        index = {name: FIRST + number for number, name in enumerate(sorted(topics["category"].unique()))}
        categories_MC = np.zeros((len(names), CATEGORIES), np.int32)
        for article, group in topics.groupby("article"):
            indices = [index[name] for name in sorted(group["category"])[:CATEGORIES]]
            categories_MC[place[article], : len(indices)] = indices
        chance = [
            int.from_bytes(hashlib.blake2b(f"{seed}/{a}/{b}".encode(), digest_size=8).digest(), "big") / 2**64
            for a, b in links.itertuples(index=False)
        ]
        return cls(
            links["source"].map(place).to_numpy(),
            links["target"].map(place).to_numpy(),
            categories_MC,
            np.array(chance) < HELD_OUT,
        )

    @property
    def articles(self) -> int:
        """The number of articles."""
        return len(self.categories_MC)


def schema_of(graph: Graph) -> FeatureSchema:
    """An id and categories on both sides. Both sides share the embedding table of categories, but not that of ids."""
    size, topics = graph.articles + FIRST, int(graph.categories_MC.max()) + 1
    sides = {
        side: [
            {"name": f"{side}_id", "kind": "id", "column": f"{side}_index", "vocabulary": f"{side}_id", "size": size},
            {
                "name": "categories", "kind": "multi_categorical", "column": f"{side}_categories",
                "vocabulary": "categories", "size": topics, "length": CATEGORIES,
            },
        ]
        for side in ("user", "item")
    }  # fmt: skip
    return FeatureSchema.model_validate({"version": 1, **sides})


def write_tables(graph: Graph, folder: Path, seed: int) -> dict[str, Any]:
    """Write samples, item_features and item_stats like a night. Returns the fields of a TrainingSpec with their files."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~graph.held_out))
    source, target = graph.source[rows], graph.target[rows]
    no_negatives = np.zeros((len(rows), 1), np.int32)
    samples = _table(
        user_index=FIRST + source,
        user_categories=graph.categories_MC[source],
        item_index=FIRST + target,
        weight=np.ones(len(rows), np.float32),
        negatives=no_negatives,
        negative_kinds=no_negatives,
    )
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), FILES)):
        path = folder / f"group={number:05d}.parquet"
        pq.write_table(samples.slice(part[0], len(part)), path)
        files.append(SampleFile(url=str(path), rows=len(part)))
    index = np.arange(FIRST, graph.articles + FIRST)
    pq.write_table(_table(item_index=index, item_categories=graph.categories_MC), folder / "item_features.parquet")
    counts = np.bincount(target, minlength=graph.articles)
    zeros = np.zeros(graph.articles)
    stats = _table(item_index=index, q_in_batch=counts / counts.sum(), q_uniform=zeros, q_popularity=zeros)
    pq.write_table(stats, folder / "item_stats.parquet")
    return {
        "train": files,
        "item_features": [str(folder / "item_features.parquet")],
        "item_stats": [str(folder / "item_stats.parquet")],
    }


def _table(**columns: np.ndarray) -> pa.Table:
    """An Arrow table. Two-dimensional arrays become list columns."""
    return pa.table({name: values if values.ndim == 1 else list(values) for name, values in columns.items()})


def recall(graph: Graph, checkpoint: str) -> list[float]:
    """Recall@KS of held-out links over all articles."""
    model = load_checkpoint(checkpoint)
    articles = np.arange(graph.articles)
    items_Md = embed_items(model, {"item_index": FIRST + articles, "item_categories": graph.categories_MC})
    users_Md = embed_users(model, {"user_index": FIRST + articles, "user_categories": graph.categories_MC})
    training, held_out = ~graph.held_out, graph.held_out
    excluded = (np.concatenate([graph.source[training], articles]), np.concatenate([graph.target[training], articles]))
    top = top_k(users_Md @ items_Md.T, max(KS), excluded)
    metrics = ranking_metrics(top, (graph.source[held_out], graph.target[held_out]), graph.articles, KS)
    return np.nanmean(metrics["recall"], axis=0).tolist()


def run(folder: str, row: str, temperature: float, seed: int, epochs: int) -> list[float]:
    """Train one model. Returns its Recall@KS."""
    graph = Graph.read(Path(folder), seed)
    with tempfile.TemporaryDirectory(prefix="nightjar-links-") as work:
        spec = TrainingSpec(
            features=schema_of(graph),
            negatives=1,
            model=ModelConfig(hidden=[128], dim=64, embedding_dim=64, small_embedding_dim=32),
            loss=LossConfig(temperature=temperature, lift=False, **ROWS[row]),  # the ranking has no prior
            training=TrainingConfig(batch_size=BATCH, threads=1, learning_rate=1e-3, embedding_learning_rate=5e-3),
            seed=seed,
            epochs=epochs,
            output=str(Path(work, "model")),
            **write_tables(graph, Path(work), seed),
        )
        launch(spec)
        return recall(graph, spec.output)


def _run(case: tuple[str, str, float, int, int]) -> list[float]:
    return run(*case)


def table_of(means: dict[str, dict[float, list[float]]]) -> str:
    """Markdown table of Recall@10 / 50 / 100 by loss and temperature. The best Recall@100 of a column is bold."""
    taus = [tau for tau in TEMPERATURES if tau in next(iter(means.values()))]
    lines = ["| Recall@10 / 50 / 100 |" + "".join(f" tau {tau} |" for tau in taus), "|---" * (len(taus) + 1) + "|"]
    best = {tau: max(row[tau][-1] for row in means.values()) for tau in taus}
    for name, row in means.items():
        cells = [" / ".join(f"{value:.4f}" for value in row[tau]) for tau in taus]
        cells = [f"**{cell}**" if row[tau][-1] == best[tau] else cell for cell, tau in zip(cells, taus, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train all rows and columns, two trainings at a time."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("folder")
    flags.add_argument("--seeds", type=int, default=3)
    flags.add_argument("--epochs", type=int, default=EPOCHS)
    flags.add_argument("--only", action="append", choices=list(ROWS), help="rows; default: all")
    flags.add_argument("--tau", action="append", type=float, help="columns; default: all")
    options = flags.parse_args()
    rows, taus = options.only or list(ROWS), options.tau or list(TEMPERATURES)
    cells = list(itertools.product(rows, taus))
    cases = [(options.folder, row, tau, seed, options.epochs) for row, tau in cells for seed in range(options.seeds)]
    recalls: dict[tuple[str, float], list[list[float]]] = {cell: [] for cell in cells}
    with ProcessPoolExecutor(2) as pool:
        for case, figures in zip(cases, pool.map(_run, cases), strict=True):
            say(f"{case[1]}, tau {case[2]}, seed {case[3]}: " + " / ".join(f"{value:.4f}" for value in figures))
            recalls[case[1], case[2]].append(figures)
    means = {row: {tau: np.mean(recalls[row, tau], axis=0).tolist() for tau in taus} for row in rows}
    print(table_of(means))
    print(json.dumps({"recall": means, "runs": {f"{row}, {tau}": values for (row, tau), values in recalls.items()}}))


if __name__ == "__main__":
    main()
