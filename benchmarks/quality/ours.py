"""Our model: builds the tables of a night, writes its question, trains, and lists items, with the product's jobs.

Tables have the seed of the config; only the training has the seeds of the runs. Steps that are done are skipped by the jobs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from benchmarks.quality.figures import metrics_of
from benchmarks.quality.known_items import popularity_of, probable_tastes
from benchmarks.quality.known_relations import learned
from benchmarks.quality.question import Question
from benchmarks.quality.ranking import lists_of
from benchmarks.quality.store import Answer, commit
from benchmarks.support import say
from jobs import build_negatives, build_positives, evaluate, nightly, train
from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.inference.embed import embed_queries, within_model
from jobs.night.steps import open_night
from jobs.release.item_embeddings import write_item_embeddings
from jobs.tracking.tracker import Tracker
from model.serving.recency_prior import with_scale
from model.serving.release import PRIOR
from pipelines import queries
from pipelines.contract.schema import FeatureSchema
from pipelines.inputs.contracts import CONTRACTS
from pipelines.positives import select
from pipelines.simulation.truth import catalogue, true_utility
from pipelines.storage.dates import parse_ds, shift

TABLES = ("inputs", "features", "positives", "negatives", "samples")  # sections that determine the sample tables
MODEL = ("model", "loss", "training")
# Models that know the truth of a simulated world: all of it, that of the items, and how features relate to tastes.
REACHABLE, LEARNABLE, LEARNED = TRUTHS = ("best_reachable", "known_items", "known_relations")
TOLERANCE = 1e-3  # of the difference to the figure that jobs.evaluate writes


@dataclass(frozen=True)
class Variant:
    """Our model under some overrides. `config`: a config file to use instead of that of the world.

    `nights`: 1: a first night, as the default; 2: the night after it, which continues the model and can mine negatives with
    the release of the first one. `changed_input`: a name of changed_inputs.CHANGES.
    """

    name: str
    overrides: tuple[str, ...] = ()
    config: Path | None = None
    nights: int = 1
    changed_input: str | None = None

    @property
    def own_warehouse(self) -> str:
        """The name of its warehouse if it cannot share the tables of the world, else empty."""
        return self.name if self.nights > 1 else self.changed_input or ""


def digest_of(config: Config, nights: int = 1) -> str:
    """A digest of everything in a config that can change the lists. `nights`: see Variant."""
    return config.hash_of(*TABLES, *MODEL, "prior") + (f"-{nights}" if nights > 1 else "")


def tables_of(config: Config) -> str:
    """A digest of what determines the sample tables."""
    return f"{config.hash_of(*TABLES)}-{config.evaluation.split}"


def order_of(runs: Sequence[tuple[Variant, int, Config]]) -> list[tuple[Variant, int, Config]]:
    """Runs in an order that builds the same tables, and trains the same model, only once: by tables, seed, training."""
    tables: dict[str, int] = {}
    models: dict[str, int] = {}
    for place, (_, _, config) in enumerate(runs):
        tables.setdefault(tables_of(config), place)
        models.setdefault(config.hash_of("features", *MODEL), place)
    return sorted(runs, key=lambda run: (tables[tables_of(run[2])], run[1], models[run[2].hash_of("features", *MODEL)]))


def build_tables(context: Context) -> float:
    """Run build_positives and build_negatives of a night, unless they are done. Returns the seconds."""
    started = time.perf_counter()
    tracker = Tracker(context.config, context.warehouse, context.ds)
    build_positives.run(context, tracker)
    build_negatives.run(context, tracker)
    tracker.close_night("FINISHED")
    return time.perf_counter() - started


def inputs_of(warehouse: Path, except_table: str | None = None) -> tuple[str, ...]:
    """Overrides that read the input tables of another warehouse, except one. The simulator's truth is not among them."""
    paths = (f"inputs.{table}.path={warehouse / table}" for table in CONTRACTS if table != except_table)
    return (*paths, "evaluation.simulated_truth=false")


def after_first_night(context: Context) -> Context:
    """Run the night before as a first night, with its release. Returns the context of the night that continues it."""
    first = replace(context.at(shift(context.ds, -1)), bootstrap_days=context.bootstrap_days - 1)
    nightly.run_night(first)
    return replace(context, bootstrap_days=0)


def answer(context: Context, question: Question, config: Config, seed: int, check: bool) -> Answer:
    """Train with a seed on the tables of the night, and list items for the asked users.

    `config`: with the seed of the tables. `check`: compare Recall@50 with that of jobs.evaluate.
    """
    started = time.perf_counter()
    context = replace(context, config=config.model_copy(update={"seed": seed}))
    tracker = Tracker(context.config, context.warehouse, context.ds)
    train.run(context, tracker)
    seconds = time.perf_counter() - started
    lists = lists_of_model(context, question)
    if check:
        _compare_with_evaluate(context, tracker, question, lists)
    tracker.close_night("FINISHED")
    facts: dict[str, Any] = {"train_seconds": seconds, "seconds": time.perf_counter() - started}
    facts |= {"question": question.fingerprint, "commit": commit()}
    return Answer(lists, facts)


def headline(question: Question, answer: Answer) -> str:
    """Recall@50 and the seconds of a run, for the log."""
    recall = np.nanmean(metrics_of(question, answer.lists)["recall", "all", 50])
    return f"Recall@50 {recall:.4f}, {answer.facts['seconds']:.0f} s"


def lists_of_model(context: Context, question: Question) -> np.ndarray:
    """The lists of the trained model, as `evaluate` and `publish_items` would rank: user vector x item vectors."""
    warehouse, ds = context.warehouse, context.ds
    embeddings = write_item_embeddings(context)
    rows = warehouse.read("item_embeddings", ds).select("item_id", "embedding").toPandas()
    place = {item: number for number, item in enumerate(question.items.tolist())}
    if set(map(str, rows["item_id"])) != set(place):
        raise RuntimeError(
            f"the live items of ds={ds} differ from those of its question: delete its folder in the store, and run again"
        )
    vectors_Md = np.empty((len(place), len(rows["embedding"][0])), np.float32)
    vectors_Md[[place[str(item)] for item in rows["item_id"]]] = np.stack(rows["embedding"].to_numpy())
    users_Bd = with_scale(user_vectors_of(context, question), _prior_scale(embeddings.facts))
    return lists_of(question, lambda block: users_Bd[block] @ vectors_Md.T)


def _prior_scale(facts: dict[str, Any]) -> float | None:
    return facts[PRIOR]["scale"] if PRIOR in facts else None


def user_vectors_of(context: Context, question: Question) -> np.ndarray:
    """[B, d] vectors of the asked users at the end of the night."""
    warehouse, ds = context.warehouse, context.ds
    model = warehouse.require("models", ds, "")
    ids = question.users[question.asked].tolist()
    asked = context.spark.createDataFrame([(user,) for user in ids], "user_id string")
    frame = queries.user_queries(open_night(context), context.config.features, asked)
    frame = within_model(frame, FeatureSchema.model_validate(model.facts["schema"]))
    parallel = context.spark.sparkContext.defaultParallelism
    files = tuple(warehouse.data_files(warehouse.path("item_features", ds)))
    frame = embed_queries(
        frame.repartition(parallel, "user_id"), warehouse.path("models", ds), model.fingerprint, files
    )
    rows = frame.toPandas()
    vector_of = dict(zip(rows["user_id"], rows["vector"]))
    return np.stack([vector_of[user] for user in ids]).astype(np.float32)


def _compare_with_evaluate(context: Context, tracker: Tracker, question: Question, lists: np.ndarray) -> None:
    """Raises RuntimeError if the Recall@50 of the lists is not the one that the job `evaluate` writes."""
    evaluate.run(context, tracker)
    rows = context.warehouse.read("evaluations", context.ds)
    rows = rows.where("model = 'two_tower' and metric = 'recall' and slice = 'all' and k = 50").collect()
    here = float(np.nanmean(metrics_of(question, lists)["recall", "all", 50]))
    if abs(here - rows[0]["value"]) > TOLERANCE:
        raise RuntimeError(f"Recall@50 of the lists is {here:.5f}, jobs.evaluate wrote {rows[0]['value']:.5f}")
    say(f"Recall@50 {here:.4f}, as jobs.evaluate wrote ({rows[0]['value']:.4f})")


def question_of(context: Context) -> Question:
    """What a night is asked, from the tables of build_positives. Items are in the order of their indices."""
    config, warehouse, ds = context.config, context.warehouse, context.ds
    opened = open_night(context)
    by_days = config.evaluation.split == "next_days"
    wanted_days = [shift(ds, ahead) for ahead in range(1, config.evaluation.days + 1)]
    days = opened.inputs.present("interactions", wanted_days)
    later = queries.next_positives(opened, config.positives, days) if by_days else queries.held_out(opened)
    targets, shares = queries.targets(
        later, opened, new_items_only=config.evaluation.new_items_only, max_users=config.evaluation.max_users
    )
    wanted = targets.toPandas().sort_values("user_id")
    catalogue = warehouse.read("item_features", ds).toPandas().sort_values("item_index")
    events = _past_events(context).toPandas()
    items = catalogue["item_id"].astype(str).to_numpy(str)
    place = {item: number for number, item in enumerate(items.tolist())}
    events = events.assign(item=events["item_id"].astype(str).map(place)).dropna(subset=["item"])
    events = events.sort_values(["time", "user_id", "item"], ignore_index=True)
    users = np.unique(np.concatenate([events["user_id"].to_numpy(str), wanted["user_id"].to_numpy(str)]))
    asked = np.searchsorted(users, wanted["user_id"].to_numpy(str))
    place_of_index = np.full(int(catalogue["item_index"].max()) + 1, -1, np.int64)
    place_of_index[catalogue["item_index"].to_numpy()] = np.arange(len(items))
    target_pairs = _flat(wanted["targets"], place_of_index)
    features = queries.user_queries(opened, config.features, _ids(context, users)).toPandas()
    features = features.set_index("user_id").loc[users]
    known = features["known_items"].iloc[asked]
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    say(f"{ds}: {len(wanted):,} users, {len(target_pairs[0]):,} targets, {len(items):,} items; left out: {shares}")
    return Question(
        users, items,
        events["user_id"].map({user: number for number, user in enumerate(users.tolist())}).to_numpy(np.int64),
        events["item"].to_numpy(np.int64), events["time"].to_numpy(np.int64), events["weight"].to_numpy(np.float32),
        asked, target_pairs,
        _flat(known, place_of_index) if config.evaluation.new_items_only else nothing,
        end=(parse_ds(shift(ds, 1)) - parse_ds("1970-01-01")).days * 86_400,
        days=config.evaluation.days if by_days else None,
        new_only=config.evaluation.new_items_only,
        user_features=_indices(features.drop(columns=["known_items", "history"]), "user_"),
        item_features=_indices(catalogue, "item_"),
    )  # fmt: skip


def _past_events(context: Context) -> DataFrame:
    """Positives of the night's window, one per user, item and day: user_id, item_id, time, weight. None that is held out."""
    opened, config = open_night(context), context.config
    interactions = opened.inputs.events("interactions", opened.log_days(), check=False)
    rows = interactions.where(select.is_positive(config.positives)).groupBy("user_id", "item_id", "ds")
    events = rows.agg(
        F.max(F.unix_seconds("event_time")).alias("time"), F.max(F.coalesce("reward", F.lit(1.0))).alias("weight")
    )
    if config.evaluation.split == "last_positive":
        held_out = queries.held_out(opened).select("user_id", "item_id")
        events = events.join(held_out, on=["user_id", "item_id"], how="left_anti")
    return events.drop("ds")


def _ids(context: Context, users: np.ndarray) -> DataFrame:
    return context.spark.createDataFrame([(user,) for user in users.tolist()], "user_id string")


def _flat(lists: Any, place_of_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of item indices as (row, position), without items outside the corpus."""
    rows = np.repeat(np.arange(len(lists)), np.array([len(values) for values in lists], np.int64))
    index = np.concatenate([np.zeros(0, np.int64), *(np.asarray(values, np.int64) for values in lists)])
    places = np.where(index < len(place_of_index), place_of_index[np.minimum(index, len(place_of_index) - 1)], -1)
    return rows[places >= 0], places[places >= 0]


def _indices(frame: Any, prefix: str) -> dict[str, np.ndarray]:
    """The encoded features of a table that are indices, or lists of indices of one length, by name."""
    found = {}
    for name in (
        name
        for name in frame.columns
        if name.startswith(prefix) and name not in ("user_id", "user_index", "item_id", "item_index")
    ):
        first = frame[name].iloc[0]
        values = np.stack(frame[name].to_numpy()) if isinstance(first, np.ndarray) else frame[name].to_numpy()
        if values.dtype.kind == "i":
            found[name.removeprefix(prefix)] = values.astype(np.int64)
    return found


def lists_of_truth(context: Context, question: Question) -> dict[str, np.ndarray]:
    """The lists of rankers that know the simulator's truth, or parts of it (see known_items, known_relations)."""
    warehouse, day = context.warehouse, shift(context.ds, 1)
    users = warehouse.read_input(warehouse.path("sim_truth_users"), [day]).toPandas()
    items_uri = warehouse.path("sim_truth_items")
    items = warehouse.read_input(items_uri, warehouse.input_days(items_uri)).toPandas()
    users = users.assign(id=users["user_id"].astype(str)).set_index("id").loc[question.users]
    items = items.assign(id=items["item_id"].astype(str)).set_index("id").loc[question.items]
    taste_Ud, taste_Md = (np.stack(frame["taste"].to_numpy()).astype(np.float32) for frame in (users, items))
    attractiveness = items["attractiveness"].to_numpy()
    probable_Ud = probable_tastes(question, taste_Ud, taste_Md, popularity_of(attractiveness))

    simulation = context.config.simulation
    everything = catalogue(simulation, context.config.seed)
    times = dict(zip(everything.item_id.astype(str).tolist(), everything.publish_time.tolist(), strict=True))
    published_M = np.array([times[item] for item in question.items.tolist()])
    of_clicks = learned(question, taste_Ud, taste_Md, simulation.zipf, published_M)

    def lists(users_Ud: np.ndarray, items_Md: np.ndarray, attractiveness_M: np.ndarray) -> np.ndarray:
        users_Bd = users_Ud[question.asked]
        return lists_of(question, lambda block: true_utility(users_Bd[block], items_Md, attractiveness_M))

    return {
        REACHABLE: lists(taste_Ud, taste_Md, attractiveness),
        LEARNABLE: lists(probable_Ud, taste_Md, attractiveness),
        LEARNED: lists(*of_clicks),
    }
