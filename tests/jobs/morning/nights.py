"""The small files of some nights, as a night leaves them in a local warehouse: what the page reads."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from jobs.common.config import Config
from jobs.common.runner import Context
from jobs.morning.record import EXAMPLES, RECORD, Failure, NightRecord, flat
from jobs.release.release_id import release_id_of
from jobs.release.verdict import Gate
from pipelines.storage.dates import days_back, shift
from pipelines.storage.local_warehouse import LocalWarehouse
from pipelines.storage.manifest import MANIFEST, Manifest

DS = "2024-03-09"
EVIL = '<script>alert("x")</script>'
QUESTION = "positives of the next day, items new to the user"
SLICES = ("all", "head", "mid", "tail", "new_items", "known_users")
PASSES = Gate("mean_cosine", 0.03, 0.95, False, "Mean cosine of two items. Above: all items look alike.")
REFUSES = Gate("recall_loss", 0.21, 0.05, False, "Share of Recall@50 certainly lost. Above: check the loss.")


def context(root: Path, ds: str = DS, **settings: Any) -> Context:
    """The context of a job that only reads, without Spark."""
    args = argparse.Namespace(config="conf/my.yaml", write=True, open=False)
    config = Config.model_validate({"warehouse": str(root), **settings})
    return Context(config, cast(SparkSession, None), LocalWarehouse(str(root)), args, ds)


def write(root: Path, table: str, ds: str, rows: int = 7, **facts: Any) -> Manifest:
    """Write a manifest with these facts."""
    manifest = Manifest(table, ds, "", {}, rows, facts, "0.1.0", f"{ds}T03:00:00+00:00", "2024-03-01-abc")
    folder = root / table / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return manifest


def write_json(root: Path, path: str, content: Any) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_nights(root: Path, nights: int = 4, gates: Sequence[Gate] = (PASSES,)) -> None:
    """Some nights up to DS, each evaluated on the day after it but for the last one. The last has the given `gates`."""
    for number, ds in enumerate(days_back(DS, nights)):
        write_data(root, ds, number)
        write_model(root, ds, number)
        write_release(root, ds, gates if ds == DS else (PASSES,))
        if ds != DS:
            write_evaluation(root, ds, number)
        write_record(root, ds, {"training": {"epochs": 1 + number // 3}})
    write_examples(root)


def write_data(root: Path, ds: str, number: int) -> None:
    """The manifests of inputs and samples. On DS a feed is short, and a column has more nulls."""
    rows, null = (1_000 + 10 * number, 0.0) if ds != DS else (480, 0.25)

    def counted(rows: int, **nulls: float) -> dict[str, Any]:
        return {"rows": rows, "good": rows - 3, "bad": {EVIL: 3}, "by_day": {ds: rows}, "null_share": nulls}

    inputs = {
        "interactions": counted(rows, user_id=0.0, reward=null),
        "users": counted(200, age=0.1),
        "items": counted(300, category=0.0),
    }
    counts = {"interactions": rows, "positives": rows - 100, "dropped_downsampled": 40, "kept": rows - 140}
    write(root, "positives", ds, rows, input=inputs, counts=counts, bootstrap_days=0)
    kinds = {"uniform": 2 * rows, "popularity": 2 * rows, "coarse": rows, "fine": 0, "none": 0}
    quotas = {"uniform": 2, "popularity": 2, "coarse": 2, "fine": 0}
    splits = {"train": {"rows": rows - 50}, "valid": {"rows": 50}}
    logs = {"ranking_logs": counted(50 * rows, stage=0.0)}
    facts = {"kinds": kinds, "quotas": quotas, "splits": splits, "input": logs, "ranking_logs": True}
    write(root, "samples", ds, rows, fallback_share=0.01, **facts)
    write(root, "vocabularies", ds, sizes={"item_id": 300 + number, "item.category": 12})
    write(root, "item_features", ds)


def write_model(root: Path, ds: str, number: int) -> None:
    loss = 6.0 - number / 10
    curve = {"steps": [[step, loss + 2 / (1 + step / 9)] for step in range(1, 60)], "epochs": [[59, loss, loss + 0.4]]}
    health = {"effective_dimensions": 12.3, "mean_cosine": 0.03, "embedding_norm": 1.7}
    write(root, "models", ds, loss=loss, epochs=1, steps=59, rows=900, curve=curve, health=health, day_recall=0.41)


def release_at(root: Path, ds: str) -> str:
    models, features = (
        Manifest(**json.loads((root / table / f"ds={ds}" / MANIFEST).read_text()))
        for table in ("models", "item_features")
    )
    return release_id_of(models, features, None)


def write_release(root: Path, ds: str, gates: Sequence[Gate]) -> None:
    """A release with its gates. It is current if they pass."""
    release = release_at(root, ds)
    embeddings = write(root, "item_embeddings", ds, release_id=release)
    index = {
        "factory": "IVF16,Flat",
        "tried": "IVF16,Flat",
        "parameter": "nprobe",
        "value": 4,
        "recall": 0.97,
        "recall_at": 20,
    }
    sweep = [{"value": value, "recall": 1 - 0.3 / value, "at_least": 1 - 0.4 / value} for value in (1, 2, 3, 4)]
    manifest = {"release_id": release, "ds": ds, "items": 300, "index": index, "index_sweep": sweep}
    write_json(root, f"releases/{release}/manifest.json", manifest)
    verdict = {"asked": "", "against": "2024-03-08-old", "gates": [asdict(gate) for gate in gates], "notes": ["a note"]}
    write_json(root, f"releases/{release}/gates.json", verdict)
    if all(gate.passed for gate in gates):
        write_json(root, "releases/current.json", {"release_id": release, "ds": ds})
    assert embeddings


def write_evaluation(root: Path, ds: str, number: int, better: bool = True) -> None:
    """The evaluation of a night on the day after it."""
    embeddings = Manifest(**json.loads((root / "item_embeddings" / f"ds={ds}" / MANIFEST).read_text()))
    level = {"two_tower": 0.40 + number / 100, "popularity": 0.1, "item_cf": 0.33 if better else 0.5}
    low = level["two_tower"] - level["item_cf"]
    margin = {
        "k": 50, "users": 900, "baseline": "item_cf", "model_recall": level["two_tower"], "baseline_recall": level["item_cf"],
        "difference": low, "low": low - 0.02, "high": low + 0.02,
    }  # fmt: skip
    facts = {"question": QUESTION, "days": [shift(ds, 1)], "popularity": {"days": 7, "recall": {"1": 0.05, "7": 0.1}}}
    manifest = Manifest(
        "evaluations", ds, "", {"item_embeddings": embeddings.fingerprint}, 7, facts | {"margin": margin}
    )
    folder = root / "evaluations" / f"ds={ds}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    rows = [
        {"model": model, "metric": metric, "slice": part, "k": k, "value": value * k / 50,
         "low": value * k / 50 - 0.02, "high": value * k / 50 + 0.02, "users": 900 // (place + 1)}
        for model, value in level.items() for metric in ("recall", "ndcg") for k in (10, 50)
        for place, part in enumerate(SLICES)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-0.parquet")


def write_record(root: Path, ds: str, settings: dict[str, Any], failure: Failure | None = None) -> None:
    config = flat(Config.model_validate(settings).model_dump(mode="json"))
    record = NightRecord(ds, "0.1.0", config, {"train": 12.5}, 0, failure)
    write_json(root, f"reports/ds={ds}/{RECORD}", asdict(record))


def write_examples(root: Path, users: int = 20, items: int = 10) -> None:
    """Users and items of DS. Item 2 has a title that is markup."""
    names = {str(n): {"id": str(100 + n), "title": None, "about": f"category_{n % 7:02d}"} for n in range(2, 40)}
    names["2"]["title"] = EVIL
    rows = []
    for number in range(users):
        retrieved = [
            {"item": 2 + (number + place) % 30, "score": 0.9 - place / 20, "near": 10 + place if number else None,
             "cosine": 0.8 - place / 30 if number else None, "hit": place == 2}
            for place in range(6)
        ]  # fmt: skip
        history = [10 + place for place in range(6)] if number else []
        then = [{"item": 2 + (number + 2) % 30, "rank": 3}, {"item": 39, "rank": None}]
        rows.append({"user": str(number), "history": history, "history_length": 3 * len(history),
                     "retrieved": retrieved, "next": then})  # fmt: skip
    told = {"ds": shift(DS, -1), "days": [DS], "split": "next_days", "release": "2024-03-08-old", "k": 50}
    near = [{"item": n, "why": "40 positives", "near": [[n + 1, 0.9], [n + 2, 0.8]]} for n in range(2, 2 + items)]
    curve = [[rank, (rank / 300) ** 0.4, (rank / 300) ** 0.6] for rank in (1, 3, 10, 30, 100, 300)]
    content = {
        "asked": "", "popularity": {"curve": curve}, "users": {**told, "rows": rows, "names": names},
        "items": {"ds": DS, "release": "new", "rows": near, "names": names},
    }  # fmt: skip
    write_json(root, f"reports/ds={DS}/{EXAMPLES}", content)
