"""The recency prior of a night: counts recent positives, chooses strength and half-life, and writes table `item_priors`.

An update within the day takes the prior of its night, with its own counts.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import faiss
import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.runner import Context, log
from jobs.inference.prior_grid import COUNTS, Grid, ItemTower, hits_of_grid
from jobs.night.steps import open_night
from jobs.release.heldout import events_of, held_out_since
from jobs.release.release_id import PRIORS
from jobs.release.store import find_release
from jobs.tracking.job_run import JobRun
from model.evaluation.prior_grid import choose, expected_point, grid_points
from model.evaluation.release_recall import HeldOutEvents, user_columns_of
from model.io.urls import read_columns
from model.serving.embed import embed_users, history_catalogue
from model.serving.faiss_index import Batches, build_index
from model.serving.recency_prior import SCALE, bonus_of, with_bonus
from model.serving.release import PRIOR, Release
from model.training.checkpoint import load_checkpoint, read_description
from pipelines.contract.schema import FeatureSchema
from pipelines.half_life import predict
from pipelines.recency import recent_counts
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe, digest

TABLE = PRIORS
OF_NIGHT = ("beta", "half_life_days", "temperature", "unseen_count", "scale", "as_of")  # What an update takes over.
Facts = dict[str, Any]


def write_item_priors(context: Context) -> Manifest | None:
    """Write table `item_priors`, unless it is done: recent counts of all live items, and in its facts the chosen prior.

    Returns None, and deletes the table of an earlier run, if this release has no prior.
    """
    warehouse, ds = context.warehouse, context.ds
    asked = _of_night(context) if warehouse.update else _asked(context)
    if asked is None:
        warehouse.remove(TABLE, ds)
        return None
    tables = ("models", "item_features", "item_stats", "positives")
    made = {table: warehouse.require(table, ds, f"run the night of ds={ds} up to train first") for table in tables}
    lineage = one_lineage(
        {f"table {table} ds={ds}": manifest for table, manifest in made.items()}, f"run train for ds={ds} again"
    )
    recipe = Recipe(digest(asked), {table: manifest.fingerprint for table, manifest in made.items()}, lineage)
    existing = warehouse.manifest(TABLE, ds)
    if existing and existing.made_by(recipe):
        return existing
    since = None if warehouse.update else held_out_since(context)
    counts = recent_counts(
        open_night(context), asked["half_lives"], as_of=asked["as_of"], since=since, unseen_count=asked["unseen_count"]
    )

    def facts(staged: DataFrame, _: str) -> Facts:
        return _facts(context, made["models"], asked, since, staged)

    written = warehouse.write(counts, TABLE, ds, recipe, facts=facts)
    log.info("recency prior %s: %s", ds, described(prior_of(written)))
    return written


def prior_of(table: Manifest) -> Facts:
    """The prior that table `item_priors` describes, as it is in the manifest of its release."""
    return {name: fact for name, fact in table.facts.items() if name != "content"}


def described(prior: Facts) -> str:
    """The prior as text for the log."""
    text = f"beta {prior['beta']:g}"
    text += f", half-life {prior['half_life_days']:g} days" if prior["beta"] else ""
    choice = prior["choice"]
    if "grid" not in choice:
        return f"{text}, as in release {choice['night']}"
    if note := choice["note"]:
        return f"{text}: {note}"
    grid = choice["grid"]
    chosen = next(p for p in grid if (p["beta"], p["half_life_days"]) == (prior["beta"], prior["half_life_days"]))
    return (
        f"{text}. Recall@{choice['recall_at']} on {choice['events']:,} held-out events is {chosen['recall']:.4f}, "
        f"{grid[0]['recall']:.4f} with beta {grid[0]['beta']:g}"
    )


def bonus_of_counts(prior: Facts) -> Callable[[Any], Any]:
    """A function from recent counts [n, H] (a column of `item_priors`) to the bonus of each item [n]."""
    column, settings = prior["column"], (prior["beta"], prior["temperature"], prior["unseen_count"])
    return lambda counts: bonus_of(counts[:, column].astype(np.float64), *settings)


def index_before_holdout(context: Context, release: Release, batches: Batches, seed: int) -> faiss.Index | None:
    """The index of a release as if nobody had acted since the held-out part of ds began; None if that changes nothing.

    The counts of the published index include the held-out events, so the gates may not measure it on them. `batches`: the
    vectors of the release.
    """
    prior = release.manifest.get(PRIOR)
    if not prior or not prior["beta"]:
        return None
    warehouse, chosen = context.warehouse, release.manifest["index"]
    table = read_columns(warehouse.data_files(warehouse.path(TABLE, context.ds)), ["item_index", COUNTS])
    bonus = np.zeros(int(table["item_index"].max()) + 1)
    bonus[table["item_index"]] = bonus_of_counts(prior)(table[COUNTS])

    def earlier() -> Any:
        for items, vectors in batches():
            yield items, with_bonus(vectors[:, :-1], bonus[items], prior["scale"])

    index = build_index(earlier, release.manifest["dim"], chosen["factory"], seed)
    if chosen["parameter"]:
        faiss.ParameterSpace().set_index_parameter(index, chosen["parameter"], chosen["value"])
    return index


def log_prior(job: JobRun, prior: Facts) -> None:
    """Log the prior as parameters, and what it was chosen from as metrics and tables."""
    job.params({PRIOR: {name: prior[name] for name in OF_NIGHT}})
    job.metrics({f"{PRIOR}.{name}": prior[name] for name in ("beta", "largest")})
    grid = prior["choice"].get("grid", [])
    k = prior["choice"].get("recall_at")
    job.metrics(
        {
            f"{PRIOR}.recall_at_{k}.beta_{point['beta']:g}": point["recall"]
            for point in grid
            if point["recall"] is not None
        }
    )
    for name, rows in (("prior_grid", grid), ("prior_half_lives", prior["choice"].get("half_lives", []))):
        if rows:
            job.table({column: [row[column] for row in rows] for column in rows[0]}, name)


def _asked(context: Context) -> Facts | None:
    """What the choice of a night depends on besides tables; None without a prior."""
    config, prior = context.config, context.config.prior_in_use
    if prior is None:
        return None
    gates = ("recall_at", "held_out", "least_users", "bootstrap_samples")
    return {
        "beta": prior.beta,
        "half_lives": prior.half_life_days,
        "unseen_count": prior.unseen_count,
        "expected_beta": config.expected_beta,
        "as_of": context.ds,
        "valid_hours": config.positives.valid_hours,
        "new_items_only": config.evaluation.new_items_only,
        "seed": config.seed,
        **{name: getattr(config.gates, name) for name in gates},
    }


def _of_night(context: Context) -> Facts | None:
    """The prior of the night that an update continues from; None if it has none.

    Ages are counted to the end of that night, so that an update changes only items with new positives.
    """
    assert context.warehouse.update is not None
    night = find_release(context, context.warehouse.update.night)
    prior = night.manifest.get(PRIOR)
    if prior is None:
        return None
    half_lives = [prior["half_lives"][prior["column"]]]
    return {name: prior[name] for name in OF_NIGHT} | {"half_lives": half_lives, "night": night.release_id}


def _facts(context: Context, model: Manifest, asked: Facts, since: str | None, counts: DataFrame) -> Facts:
    """The facts of `item_priors`: the prior, how it was chosen, and the largest bonus of an item."""
    if context.warehouse.update:
        prior = {name: asked[name] for name in OF_NIGHT} | {"choice": {"night": asked["night"]}}
    else:
        prior = _choice(context, model, asked, since, counts)
    half_lives = asked["half_lives"]
    column = half_lives.index(prior["half_life_days"]) if prior["half_life_days"] else 0
    recent = F.col("recent_counts")[column]
    row = counts.agg(F.max(recent).alias("largest"), F.sum(recent.cast("decimal(28,9)")).alias("total")).first()
    assert row is not None
    largest = bonus_of(np.array([row["largest"]]), prior["beta"], prior["temperature"], prior["unseen_count"])
    prior |= {"half_lives": half_lives, "column": column, "largest": float(largest[0])}
    prior |= {"recent_total": float(row["total"])}
    return prior | {"content": [prior["beta"], prior["half_life_days"], prior["temperature"], prior["scale"]]}


def _choice(context: Context, model: Manifest, asked: Facts, since: str | None, counts: DataFrame) -> Facts:
    """The prior of a night: the half-life that predicts the days of the window best, the beta with the most recall.

    Recall is that of the events that the gates use, with the counts from before them.
    """
    uri = context.warehouse.path("models", context.ds)
    temperature = float(read_description(uri)["result"]["temperature"])
    prediction = predict(open_night(context), asked["half_lives"], asked["unseen_count"], held_out=since is not None)
    points = grid_points(asked["beta"], prediction.best)
    events = events_of(context, since) if since else None
    users = events.users if events else 0
    choice: Facts = {"since": since, "events": len(events.owners_B) if events else 0, "users": users}
    choice |= {"recall_at": asked["recall_at"], "note": None, "predicted": prediction.events}
    tried = zip(prediction.half_lives, prediction.mean_log_probability)
    choice["half_lives"] = [{"half_life_days": days, "mean_log_probability": mean} for days, mean in tried]
    if events is None or users < asked["least_users"]:
        choice["note"] = (
            f"the expected beta, because {users} users have held-out events, fewer than gates.least_users = "
            f"{asked['least_users']}"
        )
        chosen = expected_point(points, asked["expected_beta"])
        choice["grid"] = [{**point._asdict(), "recall": None, "certain_gain": None} for point in points]
    else:
        grid = Grid(points, asked["half_lives"], temperature, asked["unseen_count"])
        hits = _hits(context, model, events, grid, counts)
        settings = asked["bootstrap_samples"], asked["seed"], asked["expected_beta"]
        chosen, measured = choose(points, hits, events.owners_B, *settings)
        choice["grid"] = [asdict(point) for point in measured]
    return {
        **chosen._asdict(),
        "temperature": temperature,
        "unseen_count": asked["unseen_count"],
        "scale": SCALE,
        "as_of": asked["as_of"],
        "choice": choice,
    }


def _hits(context: Context, model: Manifest, events: HeldOutEvents, grid: Grid, counts: DataFrame) -> Any:
    """[G, B] whether each event is a hit at each point of the grid."""
    warehouse, ds = context.warehouse, context.ds
    uri, schema = warehouse.path("models", ds), FeatureSchema.model_validate(model.facts["schema"])
    towers = load_checkpoint(uri)
    files = warehouse.data_files(warehouse.path("item_features", ds))
    users = embed_users(towers, user_columns_of(schema, events.columns), history_catalogue(towers, files))
    columns = list(dict.fromkeys(["item_index", *schema.item_columns]))
    items = warehouse.read("item_features", ds).select(*columns)
    items = items.join(counts.select("item_index", COUNTS), on="item_index", how="inner")
    tower = ItemTower(uri, model.fingerprint, schema.item_columns)
    return hits_of_grid(items, tower, events, users, grid, context.config.gates.recall_at)
