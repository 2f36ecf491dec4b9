"""Chooses what the page shows of large tables: popularity, some users with what they are offered, some items with neighbours.

`reports/ds=DS/examples.json`. Users and items are chosen by hash; only they and aggregates reach the driver.
"""

import json
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.runner import Context
from jobs.evaluate import users_to_score
from jobs.inference.embed import embed_queries, within_model
from jobs.morning.item_counts import ItemCounts, read_item_counts
from jobs.morning.item_names import names_of
from jobs.morning.item_vectors import nearest_items, towers_dim, unit_vectors, vectors_of
from jobs.morning.record import EXAMPLES, read_json, uri_of
from jobs.night.evaluations import evaluated_night, evaluation_of, headline_k
from jobs.night.steps import open_night
from jobs.release.item_embeddings import vector_batches
from model.serving.faiss_index import NO_ITEM
from model.serving.index_choice import exact_search
from model.serving.recency_prior import with_scale
from model.serving.release import PRIOR
from pipelines.contract.indices import DEFAULT
from pipelines.contract.schema import FeatureSchema
from pipelines.hashing import hashed
from pipelines.lost_day import carried_from
from pipelines.night import Night
from pipelines.queries import user_queries
from pipelines.storage.manifest import digest

USERS, ITEMS, NEIGHBOURS = 20, 10, 6
HISTORY, RETRIEVED, NEXT = 8, 8, 8  # items shown of a user
TABLES = ("item_stats", "item_embeddings", "user_histories", "vocabularies")
SECTIONS = ("inputs", "features", "positives", "evaluation", "report")  # of the config, that determine the examples


def write_examples(context: Context) -> None:
    """Write examples.json of ds, unless its inputs are as they were."""
    warehouse = context.warehouse
    if carried_from(warehouse.manifest("models", context.ds)):
        return
    explained = evaluated_night(context) or context
    evaluation = evaluation_of(explained)
    nights = {(table, ds): warehouse.require(table, ds, "") for table in TABLES for ds in (context.ds, explained.ds)}
    asked = digest(
        [
            sorted((*key, manifest.fingerprint) for key, manifest in nights.items()),
            evaluation.fingerprint if evaluation else None,
            context.config.hash_of(*SECTIONS),
        ]
    )
    if read_json(warehouse, context.ds, EXAMPLES).get("asked") == asked and not context.force:
        return
    counts = read_item_counts(context, ITEMS)
    users = explained_users(explained, evaluation.facts["days"] if evaluation else [])
    items = chosen_items(context, counts)
    # A bootstrap gives indices anew, so that items of both nights have the same index only in one lineage.
    if nights["vocabularies", context.ds].lineage == nights["vocabularies", explained.ds].lineage:
        names = dict.fromkeys(("users", "items"), names_of(context, _items_of(users) | _items_of(items)))
    else:
        names = {"users": names_of(explained, _items_of(users)), "items": names_of(context, _items_of(items))}
    content = {
        "asked": asked,
        "popularity": {"curve": counts.curve()},
        "users": _with_names(users, names["users"]),
        "items": _with_names(items, names["items"]),
    }
    warehouse.write_text(uri_of(warehouse, context.ds, EXAMPLES), json.dumps(content, ensure_ascii=False, indent=1))


def explained_users(context: Context, days: list[str]) -> dict[str, Any]:
    """Users with their history, what the release of ds retrieves for them, and their positives of `days`.

    The users are chosen by hash among those that evaluate measures; without later days among all users with a history.
    """
    config, k = context.config, headline_k(context.config.evaluation.ks)
    night, embeddings = open_night(context), context.warehouse.require("item_embeddings", context.ds, "")
    queries = _queries(context, night, days).persist()
    columns = ("user_id", "history", "known_items", "targets")
    rows = {row["user_id"]: row for row in queries.select(*columns).collect()}
    model, files = context.warehouse.require("models", context.ds, ""), _files(context, "item_features")
    embedded = embed_queries(queries, context.warehouse.path("models", context.ds), model.fingerprint, files).collect()
    queries.unpersist()
    vectors = {row["user_id"]: np.asarray(row["vector"], np.float32) for row in embedded}
    users = sorted(vectors)
    if not users:
        return {}
    prior = embeddings.facts[PRIOR]["scale"] if PRIOR in embeddings.facts else None
    scaled = with_scale(np.stack([vectors[user] for user in users]), prior)
    known = [set(rows[user]["known_items"]) if config.evaluation.new_items_only else set() for user in users]
    most = min(k + max(map(len, known)), embeddings.rows)
    ranked, _ = exact_search(vector_batches(context), scaled, most)
    best = [[i for i in row if i != NO_ITEM and i not in had][:k] for row, had in zip(ranked.tolist(), known)]
    histories = [_newest_first(rows[user]["history"]) for user in users]
    shown = {item for row in best for item in row[:RETRIEVED]} | {item for history in histories for item in history}
    served = vectors_of(context, shown)
    unit = unit_vectors(served, towers_dim(context))
    explained = [
        _explained(user, list(rows[user]["targets"]), history, items, vector, served, unit)
        for user, history, items, vector in zip(users, histories, best, scaled)
    ]
    return {
        "ds": context.ds,
        "days": days,
        "split": config.evaluation.split,
        "release": embeddings.facts["release_id"],
        "k": k,
        "rows": explained,
    }


def _queries(context: Context, night: Night, days: list[str]) -> DataFrame:
    """The queries of USERS users with `known_items` and `targets`."""
    config, nothing = context.config, F.array().cast("array<int>")
    if days or config.evaluation.split == "last_positive":
        return users_to_score(context, night, days, USERS)[0]
    order = hashed("evaluated", config.seed, F.col("user_id"))
    users = context.warehouse.read("user_histories", context.ds).select("user_id").orderBy(order, "user_id")
    model = context.warehouse.require("models", context.ds, "")
    queries = user_queries(night, config.features, users.limit(USERS))
    return within_model(queries, FeatureSchema.model_validate(model.facts["schema"])).withColumn("targets", nothing)


def _newest_first(history: list[int]) -> list[int]:
    """The items of a padded history, each once."""
    return list(dict.fromkeys(item for item in reversed(history) if item > DEFAULT))


def _explained(
    user: str, targets: list[int], history: list[int], ranked: list[int], vector: Any, served: Any, unit: Any
) -> dict[str, Any]:
    """One user of the page. `near`: the item of the history with the highest cosine to a retrieved item."""
    rank_of = {item: rank for rank, item in enumerate(ranked, 1)}
    retrieved = []
    for item in ranked[:RETRIEVED]:
        cosines = {past: float(unit[past] @ unit[item]) for past in history if past in unit}
        near = max(cosines, key=lambda past: cosines[past], default=None)
        retrieved.append(
            {
                "item": item,
                "score": round(float(served[item] @ vector), 4),
                "near": near,
                "cosine": round(cosines[near], 4) if near is not None else None,
                "hit": item in targets,
            }
        )
    by_rank = sorted(targets, key=lambda item: (rank_of.get(item, len(ranked) + 1), item))
    return {
        "user": user,
        "history": history[:HISTORY],
        "history_length": len(history),
        "retrieved": retrieved,
        "next": [{"item": item, "rank": rank_of.get(item)} for item in by_rank[:NEXT]],
    }


def chosen_items(context: Context, counts: ItemCounts) -> dict[str, Any]:
    """The most popular items and others chosen by hash, with their nearest neighbours among the items of the release."""
    embeddings = context.warehouse.require("item_embeddings", context.ds, "")
    why = {item: f"{count:,} positives, among the most popular" for item, count in counts.popular[: ITEMS // 2]}
    for item, count in counts.by_hash:
        if len(why) < ITEMS:
            why.setdefault(item, f"{count:,} positives, chosen by hash")
    near = nearest_items(context, list(why), NEIGHBOURS)
    return {
        "ds": context.ds,
        "release": embeddings.facts["release_id"],
        "rows": [{"item": item, "why": why[item], "near": near[item]} for item in why if item in near],
    }


def _with_names(part: dict[str, Any], names: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return part | {"names": {str(item): names[str(item)] for item in sorted(_items_of(part)) if str(item) in names}}


def _items_of(part: dict[str, Any]) -> set[int]:
    """The items that the users or the items of a part name."""
    items: set[int] = set()
    for row in part.get("rows", []):
        items |= {item for item, _ in row.get("near", [])} | set(row.get("history", []))
        items |= {entry["item"] for entry in (*row.get("retrieved", []), *row.get("next", []))}
        items |= {entry["near"] for entry in row.get("retrieved", []) if entry["near"] is not None}
        items |= {row["item"]} if "item" in row else set()
    return items


def _files(context: Context, table: str) -> tuple[str, ...]:
    return tuple(context.warehouse.data_files(context.warehouse.path(table, context.ds)))
