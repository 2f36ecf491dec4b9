"""The results of a night's checks for MLflow: metrics by name, and a table of every check with its limit."""

import re
from typing import Any

from pipelines.config import Checks
from pipelines.drift import DAILY, NIGHTS_BEFORE
from pipelines.samples.packing import positives_in
from pipelines.storage.manifest import Manifest

NUMBERS = ("counts", "kinds", "skew")  # groups of numbers among the facts of a manifest
NOT_A_NAME = re.compile(r"[^A-Za-z0-9_\-. /]+")
ALWAYS_ZERO = {
    "positives": ("null ids or weights", "rows lost or counted twice"),
    "samples": (
        "history at or after the event",
        "negatives that the user knows, interacted with or was shown",
        "the positive among its negatives",
        "a negative twice in one row",
    ),
}


def metrics_of(manifest: Manifest) -> dict[str, float]:
    """All numbers in the manifest of positives or samples, under names that MLflow accepts."""
    facts = manifest.facts
    metrics = {f"rows.{manifest.table}": float(manifest.rows)}
    if "pack" in facts:
        metrics[f"positives.{manifest.table}"] = float(positives_in(manifest))
    for group in NUMBERS:
        metrics |= {f"{group}.{name}": float(v) for name, v in facts.get(group, {}).items() if not isinstance(v, str)}
    for name in ("rows_fell_back", "fallback_share"):
        if name in facts:
            metrics[name] = float(facts[name])
    for table, counted in facts.get("input", {}).items():
        metrics |= {
            f"input.{table}.rows": float(counted["rows"]),
            f"input.{table}.bad": float(counted["rows"] - counted["good"]),
        }
        metrics |= {f"input.{table}.bad.{reason}": float(number) for reason, number in counted["bad"].items()}
        metrics |= {f"input.{table}.null_share.{name}": float(share) for name, share in counted["null_share"].items()}
    return {NOT_A_NAME.sub("_", name): value for name, value in metrics.items()}


def table_of(manifest: Manifest, checks: Checks) -> dict[str, list[Any]]:
    """One row per check: what was checked, the value, and the limit.

    A manifest exists only if every check passed, so the table needs no column for the result.
    """
    rows: list[tuple[str, str, float, str]] = []
    facts = manifest.facts
    for table, counted in facts.get("input", {}).items():
        days = sorted(counted["by_day"])
        limits = f"{checks.rows_low} to {checks.rows_high} x median"  # of the last seven days
        rows.append((table, f"rows of {days[-1]}", counted["by_day"][days[-1]], limits))
        rows.append(
            (table, "share of bad rows", 1 - counted["good"] / max(1, counted["rows"]), f"at most {checks.bad_rows}")
        )
        rows += [(table, f"bad: {reason}", number, "in quarantine") for reason, number in counted["bad"].items()]
        risen = f"last night + {checks.null_rise}"
        rows += [(table, f"share of nulls: {name}", share, risen) for name, share in counted["null_share"].items()]
    counts = facts.get("counts", {})
    if counts.get("interactions"):
        share = counts["dropped_repeated"] / counts["interactions"]
        rows.append(("interactions", "share of exact repeats", share, f"at most {checks.duplicates}"))
    rows += [(manifest.table, what, 0, "0") for what in ALWAYS_ZERO.get(manifest.table, ())]
    for kind, quota in facts.get("quotas", {}).items():
        rows.append(
            (
                manifest.table,
                f"{kind} negatives per row",
                facts["kinds"][kind] / max(1, positives_in(manifest)),
                f"quota {quota}",
            )
        )
    if "fallback_share" in facts:
        limit = f"at most {checks.fallback_share}"
        rows.append((manifest.table, "share of hard negatives replaced by easy ones", facts["fallback_share"], limit))
    for name, value in facts.get("skew", {}).items():
        if not isinstance(value, str):
            rows.append((manifest.table, name.replace("_", " "), value, "reported"))
    names = ("table", "check", "found", "limit")
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def rows_by_day(manifest: Manifest, before: list[Manifest]) -> dict[str, dict[str, int]]:
    """Rows of each daily input on ds and on earlier days: table -> ds -> rows, oldest first."""
    by_table: dict[str, dict[str, int]] = {}
    for night in (*before, manifest):
        for table, counted in night.facts.get("input", {}).items():
            if table in DAILY:
                by_table.setdefault(table, {}).update(counted["by_day"])
    return {table: dict(sorted(days.items())[-NIGHTS_BEFORE - 1 :]) for table, days in by_table.items()}
