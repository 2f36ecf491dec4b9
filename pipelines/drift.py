"""Compares the inputs of a night with those of the nights before: row counts, shares of nulls, repeated feeds."""

from statistics import median
from typing import Any

from pipelines.config import Checks
from pipelines.contract.errors import InputError
from pipelines.night import Night
from pipelines.storage.dates import days_back

NIGHTS_BEFORE = 7
KNOWN_DAYS = 3  # fewest days for a median
# The inputs that the facts of a written table describe. A missing partition of a DAILY input counts as 0 rows.
INPUTS_OF = {"positives": ("interactions", "users", "items"), "samples": ("ranking_logs",)}
DAILY = ("interactions", "ranking_logs")


def compare_with_before(night: Night, table: str, inputs_facts: dict[str, Any], checks: Checks) -> None:
    """Raises InputError if an input of `table` (positives, samples) deviates from the last seven nights.

    `inputs_facts`: InputTables.facts() of this night. Those of the nights before are in the manifests of `table`.
    """
    if night.warehouse.update:  # An update reads only part of a day.
        return
    nights = days_back(night.ds, NIGHTS_BEFORE + 1)[:-1]
    manifests = [night.warehouse.manifest(table, ds) for ds in nights]
    before = [(m.ds, m.facts.get("input", {})) for m in manifests if m is not None]
    for name in INPUTS_OF[table]:
        earlier = [(ds, facts[name]) for ds, facts in before if name in facts]
        if earlier and (name in inputs_facts or name in DAILY):
            now = inputs_facts.get(name, {"by_day": {night.ds: 0}, "null_share": {}})
            _compare_rows(name, now["by_day"], [facts["by_day"] for _, facts in earlier], checks)
            _compare_nulls(name, max(now["by_day"]), now["null_share"], *earlier[-1], checks)


def refuse_repeats(count: int, rows: int, checks: Checks) -> None:
    """Raises InputError if too many interactions repeat another one: `count` of `rows`."""
    if rows and count / rows > checks.duplicates:
        raise InputError(
            f"table interactions: {count} of {rows} rows repeat another one exactly (same user_id, item_id, event_time, "
            f"action, request_id), more than checks.duplicates = {checks.duplicates:g} allows. The feed was probably "
            "delivered twice: remove one copy, then run this ds again, or raise checks.duplicates if the repeats are right"
        )


def _compare_rows(name: str, by_day: dict[str, int], before: list[dict[str, int]], checks: Checks) -> None:
    newest = max(by_day)
    earlier = {ds: rows for days in before for ds, rows in days.items() if ds < newest}
    last = [earlier[ds] for ds in sorted(earlier)[-NIGHTS_BEFORE:]]
    if len(last) < KNOWN_DAYS:
        return
    usual, rows = median(last), by_day[newest]
    for limit, key, is_beyond, what in (
        (checks.rows_low, "rows_low", lambda limit: rows < limit * usual, "less"),
        (checks.rows_high, "rows_high", lambda limit: rows > limit * usual, "more"),
    ):
        if limit is not None and usual and is_beyond(limit):
            raise InputError(
                f"table {name}: {rows} rows on ds={newest}, {what} than {limit:g} times the median of the last "
                f"{len(last)} days ({usual:g}). Check the feed; if this is right, change checks.{key} (null: off)"
            )


def _compare_nulls(
    name: str, ds: str, shares: dict[str, float], night: str, before: dict[str, Any], checks: Checks
) -> None:
    for column, share in sorted(shares.items()):
        usual = before["null_share"].get(column)
        if checks.null_rise is not None and usual is not None and round(share - usual, 6) > checks.null_rise:
            raise InputError(
                f"table {name}, column {column}: {share:.1%} of the values of ds={ds} are null, {usual:.1%} in the "
                f"night of {night}. Check the feed; if this is right, raise checks.null_rise "
                f"(= {checks.null_rise:g}; null: off)"
            )
