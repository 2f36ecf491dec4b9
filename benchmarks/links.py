"""Link prediction on a graph of articles: does logQ correction help, at which temperature, and how much?

    python -m benchmarks.links FOLDER            # FOLDER holds links.tsv and categories.tsv of Wikispeedia
                                                 # prints a table, last line JSON

The counterpart of the Wikipedia experiment of Yi et al. (RecSys 2019, table 2): a source article is the user, an article
that it links to the item. 10% of the links are held out, by a hash of the link and the seed; the rest trains DSSM towers
over ids and categories with in-batch negatives, through the same files, reader, masks and loss as a night. Recall@K is over
the whole corpus, without the articles that the source is known to link to, mean over sources with held-out links.

`plain` is correction: none. All rows of a column have the same seeds, samples, order and budget.

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
CATEGORIES = 4  # of an article that are used; most have one or two
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
    """Links as places of articles, and the categories of each article (0-padded indices)."""

    source: np.ndarray
    target: np.ndarray
    categories_MC: np.ndarray
    held_out: np.ndarray  # bool, a link each

    @classmethod
    def read(cls, folder: Path, seed: int) -> "Graph":
        """Both files, names URL-encoded, lines with # are comments."""
        links = pd.read_csv(folder / "links.tsv", sep="\t", comment="#", names=["source", "target"]).drop_duplicates()
        names = np.unique(links.to_numpy().ravel())
        place = {name: number for number, name in enumerate(names)}
        topics = pd.read_csv(folder / "categories.tsv", sep="\t", comment="#", names=["article", "category"])
        topics = topics[topics["article"].isin(place)]
        index = {name: FIRST + number for number, name in enumerate(sorted(topics["category"].unique()))}
        categories_MC = np.zeros((len(names), CATEGORIES), np.int32)
        for article, group in topics.groupby("article"):
            own = [index[name] for name in sorted(group["category"])[:CATEGORIES]]
            categories_MC[place[article], : len(own)] = own
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
        """How many articles there are."""
        return len(self.categories_MC)


def schema_of(graph: Graph) -> FeatureSchema:
    """An id and categories on both sides; the tables of categories are one, those of ids are not."""
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
    """Samples, item_features and item_stats as a night writes them; the fields of a TrainingSpec that name them."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~graph.held_out))
    source, target = graph.source[rows], graph.target[rows]
    nothing = np.zeros((len(rows), 1), np.int32)
    samples = _table(
        user_index=FIRST + source,
        user_categories=graph.categories_MC[source],
        item_index=FIRST + target,
        weight=np.ones(len(rows), np.float32),
        negatives=nothing,
        negative_kinds=nothing,
    )
    files = []
    for number, part in enumerate(np.array_split(np.arange(len(rows)), FILES)):
        path = folder / f"group={number:05d}.parquet"
        pq.write_table(samples.slice(part[0], len(part)), path)
        files.append(SampleFile(url=str(path), rows=len(part)))
    index = np.arange(FIRST, graph.articles + FIRST)
    pq.write_table(_table(item_index=index, item_categories=graph.categories_MC), folder / "item_features.parquet")
    counts = np.bincount(target, minlength=graph.articles)
    none = np.zeros(graph.articles)
    stats = _table(item_index=index, q_in_batch=counts / counts.sum(), q_uniform=none, q_popularity=none)
    pq.write_table(stats, folder / "item_stats.parquet")
    return {
        "train": files,
        "item_features": [str(folder / "item_features.parquet")],
        "item_stats": [str(folder / "item_stats.parquet")],
    }


def _table(**columns: np.ndarray) -> pa.Table:
    """Scalars, and lists where an array has two dimensions."""
    return pa.table({name: values if values.ndim == 1 else list(values) for name, values in columns.items()})


def recall(graph: Graph, checkpoint: str) -> list[float]:
    """Recall@KS over the whole corpus."""
    model = load_checkpoint(checkpoint)
    articles = np.arange(graph.articles)
    items_Md = embed_items(model, {"item_index": FIRST + articles, "item_categories": graph.categories_MC})
    users_Md = embed_users(model, {"user_index": FIRST + articles, "user_categories": graph.categories_MC})
    known, held = ~graph.held_out, graph.held_out
    excluded = (np.concatenate([graph.source[known], articles]), np.concatenate([graph.target[known], articles]))
    top = top_k(users_Md @ items_Md.T, max(KS), excluded)
    found = ranking_metrics(top, (graph.source[held], graph.target[held]), graph.articles, KS)
    return np.nanmean(found["recall"], axis=0).tolist()


def run(folder: str, row: str, temperature: float, seed: int, epochs: int) -> list[float]:
    """Train once, return Recall@KS."""
    graph = Graph.read(Path(folder), seed)
    with tempfile.TemporaryDirectory(prefix="nightjar-links-") as work:
        spec = TrainingSpec(
            features=schema_of(graph),
            negatives=1,
            model=ModelConfig(hidden=[128], dim=64, embedding_dim=64, small_embedding_dim=32),
            loss=LossConfig(temperature=temperature, **ROWS[row]),
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
    """Rows of losses, columns of temperatures, Recall@10 / 50 / 100 in each cell; a column's best Recall@100 is bold."""
    taus = [tau for tau in TEMPERATURES if tau in next(iter(means.values()))]
    lines = ["| Recall@10 / 50 / 100 |" + "".join(f" tau {tau} |" for tau in taus), "|---" * (len(taus) + 1) + "|"]
    best = {tau: max(row[tau][-1] for row in means.values()) for tau in taus}
    for name, row in means.items():
        cells = [" / ".join(f"{value:.4f}" for value in row[tau]) for tau in taus]
        cells = [f"**{cell}**" if row[tau][-1] == best[tau] else cell for cell, tau in zip(cells, taus, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """All rows and columns, two at a time."""
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
    found: dict[tuple[str, float], list[list[float]]] = {cell: [] for cell in cells}
    with ProcessPoolExecutor(2) as pool:
        for case, figures in zip(cases, pool.map(_run, cases), strict=True):
            say(f"{case[1]}, tau {case[2]}, seed {case[3]}: " + " / ".join(f"{value:.4f}" for value in figures))
            found[case[1], case[2]].append(figures)
    means = {row: {tau: np.mean(found[row, tau], axis=0).tolist() for tau in taus} for row in rows}
    print(table_of(means))
    print(json.dumps({"recall": means, "runs": {f"{row}, {tau}": values for (row, tau), values in found.items()}}))


if __name__ == "__main__":
    main()
