"""Evaluate a night's model: recall, NDCG and hit rate over all items, beside recent popularity and item-item CF."""

import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.plots import recall_by_third
from jobs.common.runner import Context, log, main, parser
from jobs.inference.embed import within_model
from jobs.inference.score import ScoringInputs, score_users
from jobs.night.baselines import margin_of, with_best_popularity
from jobs.night.evaluations import headline_k, question_of
from jobs.night.margin import Margin, margin_in
from jobs.night.night_metrics import evaluation_metrics
from jobs.night.preconditions import require_truth
from jobs.night.steps import as_job, open_night
from jobs.release.item_embeddings import write_item_embeddings
from jobs.release.recorded_evaluation import record_evaluation
from jobs.tracking.datasets import datasets_of
from jobs.tracking.job_run import JobRun
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tracker import Tracker
from model.evaluation.ranking_metrics import METRICS, bootstrap_interval
from model.serving.release import PRIOR
from pipelines import queries
from pipelines.contract.schema import FeatureSchema
from pipelines.histories.cuts import ahead_of
from pipelines.night import Night
from pipelines.positives.popularity import day_ordinal
from pipelines.storage.dates import shift
from pipelines.storage.lineage import one_lineage
from pipelines.storage.manifest import Manifest, Recipe

SCHEMA = "model string, metric string, k int, slice string, value double, low double, high double, users long"


def run(context: Context, tracker: Tracker) -> None:
    """Write table `evaluations`, and log it to MLflow. Without interactions after ds, only logs that there are none."""
    warehouse, config, ds = context.warehouse, context.config.evaluation, context.ds
    file = getattr(context.args, "config", "FILE")
    warehouse.require(
        "models", ds, f"train it first, with the whole night: python -m jobs.nightly --config {file} --ds {ds}"
    )
    night = open_night(context)
    days = _later_days(night, config.days) if config.split == "next_days" else []
    if config.split == "next_days" and not days:
        log.info("evaluate %s: no interactions after this day yet; run it again when they arrive", ds)
        return
    require_truth(context, days[0] if days else ds)
    embeddings = write_item_embeddings(context)
    made = {
        t: warehouse.require(t, ds, f"run build_positives for ds={ds} first") for t in ("user_histories", "item_stats")
    }
    inputs = {"item_embeddings": embeddings.fingerprint} | {t: m.fingerprint for t, m in made.items()}
    if days:
        inputs["interactions"] = night.inputs.fingerprint("interactions", days)
    if snapshot := night.inputs.snapshot_at("users", ds, strictly_before=False):
        inputs["users"] = night.inputs.fingerprint("users", [snapshot])
    lineage = one_lineage(
        {f"table {t} ds={ds}": m for t, m in {"item_embeddings": embeddings, **made}.items()},
        f"run build_negatives and train for ds={ds} again",
    )
    recipe = Recipe(context.config.hash_of("evaluation", "inputs", "features", "positives"), inputs, lineage)
    existing = warehouse.manifest("evaluations", ds)
    if existing and existing.made_by(recipe) and not context.force:
        log.info("evaluate %s: already done", ds)
        _warn_unless_certain(ds, margin_in(existing.facts))
        return
    users, shares = users_to_score(context, night, days, config.max_users)
    users = users.persist()  # read twice: first to see whether there are any
    if users.isEmpty():
        log.info("evaluate %s: no user has a target that could be recalled; nothing to measure", ds)
        return
    horizon = _horizon(context, days)
    with tracker.job("evaluate") as job:
        job.inputs(datasets_of(context, inputs), "evaluation")
        scored = score_users(users, _scoring_inputs(context, embeddings)).toPandas()
        users.unpersist()
        rows, compared = _measure(context, scored, job)
        facts = {"split": config.split, "days": days, "new_items_only": config.new_items_only, **horizon, **shares}
        frame = context.spark.createDataFrame(pd.DataFrame(rows), SCHEMA)
        warehouse.write(frame.coalesce(1), "evaluations", ds, recipe, facts=facts | compared)
        job.params({"evaluation": config.model_dump(), "days": ",".join(days)})
        job.tags({"question": horizon["question"], "evaluated_night": ds})
        job.metrics(shares)
        job.outcome = _outcome(Margin(**compared["margin"])) + (f", of {ds}" if ds != tracker.ds else "")
        record_evaluation(context, tracker, job)
    _report_night(context, tracker, rows, facts | compared)


def _measure(context: Context, scored: pd.DataFrame, job: JobRun) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the rows of `evaluations`, facts on the baselines) from per-user metrics. Logs both to MLflow."""
    config, seed = context.config.evaluation, context.config.seed
    k, samples = headline_k(config.ks), config.bootstrap_samples
    scored, popularity = with_best_popularity(scored, k)
    margin, rows = margin_of(scored, k, samples, seed), summarise(scored, samples, seed)
    windows = {f"popularity_{days}d.recall_at_{k}": recall for days, recall in popularity["recall"].items()}
    job.metrics(metric_names(rows) | margin.metrics() | windows)
    job.tags(margin.tags())
    job.figure(recall_by_third(rows, k), f"recall_at_{k}_by_third")
    return rows, {"popularity": popularity, "margin": asdict(margin)}


def _report_night(context: Context, tracker: Tracker, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Log the headline figures, and set them as metrics and tags of the night."""
    ds, k, margin = context.ds, headline_k(context.config.evaluation.ks), Margin(**facts["margin"])
    recall = {row["model"]: row for row in rows if (row["metric"], row["slice"], row["k"]) == ("recall", "all", k)}
    tracker.night_metrics(evaluation_metrics(recall, k, margin))
    # The night that runs may be a later one (jobs/night/earlier_nights.py).
    tracker.night_tags({"question": facts["question"], "evaluated_night": ds} | margin.tags())
    figures = ", ".join(f"{name}.recall_at_{k} {row['value']:.4f}" for name, row in recall.items())
    windows = ", ".join(facts["popularity"]["recall"])
    log.info("evaluate %s: %s; popularity over %d days (best of %s)", ds, figures, facts["popularity"]["days"], windows)
    if margin.certain:
        log.info("evaluate %s: %s", ds, margin.line())
    _warn_unless_certain(ds, margin)


def _outcome(margin: Margin) -> str:
    """The result in a few words, for the name of the run."""
    return f"Recall@{margin.k} {margin.model_recall:.3f}, {margin.difference:+.3f} on {margin.baseline}"


def _warn_unless_certain(ds: str, margin: Margin | None) -> None:
    """Warn if the model does not beat the best baseline with certainty."""
    if margin and not margin.certain:
        log.warning("evaluate %s: %s", ds, margin.line())


def _horizon(context: Context, days: list[str]) -> dict[str, Any]:
    """The question, how many days ahead the evaluation and the training rows look (None: to the next positive), and the
    history order.
    """
    config = context.config
    horizon = {
        "question": question_of(config.evaluation, days),
        "evaluated_days": config.evaluation.days if config.evaluation.split == "next_days" else None,
        "history": config.features.history_order,
        "ahead_days": ahead_of(config.features, config.positives),
    }
    log.info(
        "evaluate %s: the question is: %s; histories of training rows: %s%s",
        context.ds,
        horizon["question"],
        horizon["history"],
        f", up to {horizon['ahead_days']:g} days before the event" if horizon["ahead_days"] else "",
    )
    return horizon


def summarise(scored: pd.DataFrame, samples: int, seed: int) -> list[dict[str, Any]]:
    """The rows of `evaluations` from per-user metrics: means over users with bootstrap intervals."""
    rows = []
    for (model, part, k), group in scored.sort_values("user_id").groupby(["model", "slice", "k"], sort=True):
        for metric in METRICS:
            values = group[metric].to_numpy(np.float64)
            low, high = bootstrap_interval(values, samples, seed)
            row = {"model": model, "metric": metric, "k": int(k), "slice": part, "value": float(values.mean())}
            rows.append(row | {"low": low, "high": high, "users": len(values)})
    return rows


def metric_names(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rows as metrics for MLflow: two_tower.recall_at_50, two_tower.recall_at_50.tail, and interval ends (.low, .high)."""
    named = {}
    for row in rows:
        part = "" if row["slice"] == "all" else f".{row['slice']}"
        name = f"{row['model']}.{row['metric']}_at_{row['k']}{part}"
        named[name] = row["value"]
        if not part:
            named |= {f"{name}.low": row["low"], f"{name}.high": row["high"]}
    return named


def _later_days(night: Night, days: int) -> list[str]:
    return night.inputs.present("interactions", [shift(night.ds, ahead) for ahead in range(1, days + 1)])


def users_to_score(context: Context, night: Night, days: list[str], most: int) -> tuple[DataFrame, dict[str, float]]:
    """The queries of at most `most` users, with targets and excluded items; and the shares of targets that are left out.

    The users of a smaller `most` are among those of a larger one.
    """
    config = context.config
    positives = queries.next_positives(night, config.positives, days) if days else queries.held_out(night)
    new_only = config.evaluation.new_items_only
    wanted, shares = queries.targets(positives, night, new_items_only=new_only, max_users=most)
    wanted = wanted.persist()
    users = queries.user_queries(night, config.features, wanted.select("user_id")).join(
        wanted, on="user_id", how="inner"
    )
    model = context.warehouse.require("models", context.ds, "")
    users = within_model(users, FeatureSchema.model_validate(model.facts["schema"]))
    nothing = F.array().cast("array<int>")
    users = users.withColumn("excluded", F.col("known_items") if new_only else nothing)
    if config.evaluation.simulated_truth:
        day = days[0] if days else context.ds
        truth = context.warehouse.read_input(context.warehouse.path("sim_truth_users"), [day])
        truth = truth.select(F.col("user_id").cast("string").alias("user_id"), F.col("taste").alias("true_taste"))
        users = users.join(truth, on="user_id", how="inner")
    # Few users per task: rows are small but scoring is expensive, which Spark cannot know.
    parallel = context.spark.sparkContext.defaultParallelism
    return users.repartition(parallel, "user_id"), shares


def _scoring_inputs(context: Context, embeddings: Manifest) -> ScoringInputs:
    warehouse, ds, config = context.warehouse, context.ds, context.config.evaluation

    def files(table: str) -> tuple[str, ...]:
        return tuple(warehouse.data_files(warehouse.path(table, ds)))

    truth: tuple[str, ...] = ()
    if config.simulated_truth:
        truth = tuple(warehouse.data_files(warehouse.path("sim_truth_items")))
    return ScoringInputs(
        model_uri=warehouse.path("models", ds),
        model_fingerprint=embeddings.fingerprint,
        embeddings=files("item_embeddings"),
        item_stats=files("item_stats"),
        item_features=files("item_features"),
        neighbours=_neighbours(context),
        truth=truth,
        last_day=day_ordinal(ds),
        popularity_days=tuple(config.popularity_days),
        first_new_day=day_ordinal(ds) - config.new_item_days + 1,
        ks=tuple(sorted(config.ks)),
        prior_scale=embeddings.facts[PRIOR]["scale"] if PRIOR in embeddings.facts else None,
    )


def _neighbours(context: Context) -> tuple[str, ...]:
    """The files of the item-item baseline. Written once per day."""
    warehouse, ds, config = context.warehouse, context.ds, context.config.evaluation
    night = open_night(context)
    state = warehouse.require("user_histories", ds, "")
    recipe = Recipe(
        f"{config.item_cf_items}-{config.item_cf_neighbours}", {"user_histories": state.fingerprint}, state.lineage
    )
    existing = warehouse.manifest("item_neighbours", ds)
    if not existing or not existing.made_by(recipe):
        frame = queries.co_occurrence(night, config.item_cf_items, config.item_cf_neighbours)
        warehouse.write(frame, "item_neighbours", ds, recipe, may_be_empty=True)
    return tuple(warehouse.data_files(warehouse.path("item_neighbours", ds)))


if __name__ == "__main__":
    sys.exit(main(parser("evaluate", __doc__), as_job("evaluate", run), before_spark=require_record))
