"""Scores users against all items on Spark's executors: the model, the baselines, and the true preferences.

Shapes: B users of a batch, M live items (the corpus, in the order of item_embeddings), d vector length.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyarrow import parquet as pq
from pyspark.sql import DataFrame

from jobs.inference.embed import user_vectors
from model.evaluation.ranking_metrics import METRICS, SLICES, THIRDS, popularity_thirds, ranking_metrics, top_k
from model.io.urls import read_columns, resolve
from model.serving.recency_prior import with_scale
from pipelines.simulation.truth import true_utility

CELLS = 16_000_000  # scores in memory at once: with more items, batches have fewer users


@dataclass(frozen=True)
class ScoringInputs:
    """The files that an executor needs. Small, because Spark sends it with each task."""

    model_uri: str
    model_fingerprint: str
    embeddings: tuple[str, ...]  # files of item_embeddings
    item_stats: tuple[str, ...]
    item_features: tuple[str, ...]
    neighbours: tuple[str, ...]  # files of item_neighbours
    truth: tuple[str, ...]  # files of the simulator's true items; empty for real data
    last_day: int  # ordinal of ds
    popularity_days: tuple[int, ...]  # windows of the popularity baseline
    first_new_day: int  # ordinal of the first day on which an item that counts as new was published
    ks: tuple[int, ...]
    prior_scale: float | None = None  # of the recency prior, if the vectors in item_embeddings include one


@dataclass(frozen=True)
class Corpus:
    """The live items as arrays."""

    item_index: np.ndarray  # [M]
    position: np.ndarray  # [V] item index -> position; -1 if the item is not live
    vectors: np.ndarray  # [M, d]
    windows: tuple[int, ...]  # windows of popularity: `popularity_days` without those that count the same
    recent: np.ndarray  # [W, M] clicks in each window
    thirds: np.ndarray  # [M] head, mid, tail
    new: np.ndarray  # [M] published in the last days (first clicked, if publish_time is null)
    unseen: np.ndarray  # [M] never a positive so far
    similar: sp.csr_matrix  # [V, M] item-item similarities
    true_taste: np.ndarray | None  # [M, taste]
    attractiveness: np.ndarray | None  # [M]


@lru_cache(maxsize=1)
def load_corpus(inputs: ScoringInputs) -> Corpus:
    """Read the items and the baselines. Each Python worker reads them once."""
    embeddings = read_columns(inputs.embeddings, ["item_index", "embedding"])
    order = np.argsort(embeddings["item_index"])
    item_index, vectors = embeddings["item_index"][order].astype(np.int64), embeddings["embedding"][order]
    size = int(item_index.max()) + 1
    stats = _read_lists(inputs.item_stats, ["item_index", "day_ordinals", "day_counts", "window_count", "first_seen"])
    size = max(size, int(stats["item_index"].to_numpy().max()) + 1)
    position = np.full(size, -1, np.int64)
    position[item_index] = np.arange(len(item_index))

    counts = np.zeros(size, np.int64)
    counts[stats["item_index"].to_numpy()] = stats["window_count"].to_numpy()
    windows, recent = _recent_counts(stats, inputs, size)

    born = np.full(size, np.iinfo(np.int64).min)
    _set_days(born, stats["item_index"], stats["first_seen"])
    seen = np.isin(item_index, stats["item_index"].filter(stats["first_seen"].is_valid()).to_numpy())
    published = _read_lists(inputs.item_features, ["item_index", "publish_time"])
    _set_days(born, published["item_index"], published["publish_time"])

    near = _read_lists(inputs.neighbours, ["item_index", "neighbours", "similarities"])
    rows = np.repeat(near["item_index"].to_numpy(), np.diff(near["neighbours"].offsets.to_numpy()))
    columns = position[near["neighbours"].flatten().to_numpy()]
    alive = columns >= 0
    weights = near["similarities"].flatten().to_numpy()
    similar = sp.csr_matrix((weights[alive], (rows[alive], columns[alive])), shape=(size, len(item_index)))
    taste, attractiveness = _truth(inputs, item_index)
    return Corpus(
        item_index,
        position,
        vectors,
        windows,
        recent[:, item_index],
        popularity_thirds(counts[item_index]),
        born[item_index] >= inputs.first_new_day,
        ~seen,
        similar,
        taste,
        attractiveness,
    )


def score_users(users: DataFrame, inputs: ScoringInputs) -> DataFrame:
    """Per-user metrics of every scorer: user_id, model, slice, k, recall, ndcg, hit_rate.

    `users`: query columns, known_items, targets (array<int>), excluded (array<int>) and, for simulated data, true_taste.
    """
    schema = "user_id string, model string, slice string, k int, " + ", ".join(f"{name} double" for name in METRICS)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        corpus = None
        for batch in batches:
            corpus = corpus or load_corpus(inputs)
            step = max(1, CELLS // len(corpus.item_index))
            for start in range(0, batch.num_rows, step):
                yield from _score_batch(batch.slice(start, step), inputs, corpus)

    return users.mapInArrow(run, schema)


def _score_batch(batch: pa.RecordBatch, inputs: ScoringInputs, corpus: Corpus) -> Iterator[pa.RecordBatch]:
    rows, items = _flat(batch.column("targets"))
    targets = (rows, corpus.position[items])
    rows, items = _flat(batch.column("excluded"))
    places = corpus.position[items]
    excluded = (rows[places >= 0], places[places >= 0])
    parts = _parts(batch, targets, corpus)
    for name, scores in _scorers(batch, inputs, corpus):
        top = top_k(scores, max(inputs.ks), excluded)
        for part, chosen in parts.items():
            metrics = ranking_metrics(top, (targets[0][chosen], targets[1][chosen]), len(corpus.item_index), inputs.ks)
            has = ~np.isnan(metrics["recall"][:, 0])
            users = batch.column("user_id").filter(pa.array(has))
            for place, k in enumerate(inputs.ks):
                size = int(has.sum())
                # Explicit types: Arrow cannot infer the type of an empty column.
                columns = [users, *(pa.array([text] * size, pa.string()) for text in (name, part))]
                columns += [pa.array([k] * size, pa.int32())]
                columns += [pa.array(metrics[metric][has, place]) for metric in METRICS]
                yield pa.RecordBatch.from_arrays(columns, names=["user_id", "model", "slice", "k", *METRICS])


def _parts(batch: pa.RecordBatch, targets: tuple[np.ndarray, np.ndarray], corpus: Corpus) -> dict[str, np.ndarray]:
    """For each of SLICES, which targets belong to it."""
    rows, places = targets
    known = np.diff(batch.column("known_items").offsets.to_numpy())[rows] > 0
    thirds = corpus.thirds[places]
    parts = {"all": np.ones(len(rows), bool), "new_items": corpus.new[places], "unseen_items": corpus.unseen[places]}
    parts |= {"known_users": known, "new_users": ~known}
    parts |= {part: thirds == number for number, part in enumerate(THIRDS)}
    return {part: parts[part] for part in SLICES}


def distinct_windows(windows: Iterable[int], history_days: int) -> tuple[int, ...]:
    """The windows (days) in ascending order. Of those that cover the whole history only the shortest, as they count the same.

    >>> distinct_windows([30, 1, 7], history_days=4)
    (1, 7)
    """
    ordered = sorted(windows)
    longer = [days for days in ordered if days >= history_days]
    return (*ordered[: len(ordered) - len(longer)], *longer[:1])


def _recent_counts(stats: dict[str, pa.Array], inputs: ScoringInputs, size: int) -> tuple[tuple[int, ...], np.ndarray]:
    """(windows, clicks per window and item index [W, size])."""
    days, by_day = stats["day_ordinals"].flatten().to_numpy(), stats["day_counts"].flatten().to_numpy()
    owner = np.repeat(stats["item_index"].to_numpy(), np.diff(stats["day_ordinals"].offsets.to_numpy()))
    windows = distinct_windows(inputs.popularity_days, inputs.last_day - int(days.min(initial=inputs.last_day)) + 1)
    recent = np.zeros((len(windows), size), np.int64)
    for row, window in enumerate(windows):
        late = days > inputs.last_day - window
        np.add.at(recent[row], owner[late], by_day[late])
    return windows, recent


def _set_days(days: np.ndarray, index: pa.Array, moments: pa.Array) -> None:
    """Set days[index] to the days since 1970 of dates or times. Nulls are skipped."""
    valid = moments.is_valid().to_numpy(zero_copy_only=False)
    ordinals = moments.filter(pa.array(valid)).cast(pa.date32()).cast(pa.int32()).to_numpy()
    days[index.to_numpy()[valid]] = ordinals


def _scorers(batch: pa.RecordBatch, inputs: ScoringInputs, corpus: Corpus) -> Iterator[tuple[str, np.ndarray]]:
    """(name, scores [B, M]) of each scorer, one in memory at a time."""
    vectors = user_vectors(batch, inputs.model_uri, inputs.model_fingerprint, inputs.item_features)
    yield "two_tower", with_scale(vectors, inputs.prior_scale) @ corpus.vectors.T
    if inputs.prior_scale is not None:
        yield "two_tower_without_prior", vectors @ corpus.vectors[:, :-1].T
    for days, recent in zip(corpus.windows, corpus.recent):
        yield f"popularity_{days}d", np.broadcast_to(recent.astype(np.float32), (batch.num_rows, len(recent)))
    rows, items = _flat(batch.column("known_items"))
    history = sp.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, items)), shape=(batch.num_rows, corpus.similar.shape[0])
    )
    # Popularity breaks ties, and ranks for users without history. Its weight of 1e-6 never outweighs a neighbour. The sum
    # over the windows counts recent days more.
    popularity = corpus.recent.sum(axis=0)
    by_popularity = popularity / (1e6 * max(int(popularity.max()), 1))
    yield "item_cf", (history @ corpus.similar).toarray() + by_popularity.astype(np.float32)
    if corpus.true_taste is not None and corpus.attractiveness is not None:
        taste = np.array(batch.column("true_taste").to_pylist(), np.float32)
        yield "best_reachable", true_utility(taste, corpus.true_taste, corpus.attractiveness)


def _truth(inputs: ScoringInputs, item_index: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """True tastes and attractiveness of the live items; (None, None) for real data."""
    if not inputs.truth:
        return None, None
    truth = _read_lists(inputs.truth, ["item_id", "taste", "attractiveness"])
    ids = _read_lists(inputs.embeddings, ["item_index", "item_id"])
    id_of = dict(zip(ids["item_index"].to_pylist(), map(str, ids["item_id"].to_pylist())))
    row_of = {str(item): row for row, item in enumerate(truth["item_id"].to_pylist())}
    rows = np.array([row_of[id_of[index]] for index in item_index.tolist()])
    taste = np.array(truth["taste"].to_pylist(), np.float32)
    return taste[rows], truth["attractiveness"].to_numpy()[rows]


def _read_lists(urls: tuple[str, ...], columns: list[str]) -> dict[str, pa.Array]:
    """Columns of Parquet files as Arrow arrays. Lists and strings get 64-bit offsets, so that any number can be joined."""
    tables = []
    for url in urls:
        filesystem, path = resolve(url)
        with filesystem.open_input_file(path) as file:
            tables.append(pq.ParquetFile(file).read(columns=columns))
    table = pa.concat_tables(tables)
    return {
        name: pa.concat_arrays([_with_large_offsets(chunk) for chunk in table.column(name).chunks]) for name in columns
    }


def _with_large_offsets(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type):
        return values.cast(pa.large_string())
    return values.cast(pa.large_list(values.type.value_type)) if pa.types.is_list(values.type) else values


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (row, value) pairs."""
    rows = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    return rows, lists.flatten().to_numpy().astype(np.int64)
