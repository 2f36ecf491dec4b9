"""Negatives mined from the release of the night before: two nights, the night again, packed rows, another bootstrap."""

import json
from collections import defaultdict
from typing import Any

import pytest

from pipelines.contract.negative_kinds import MINED
from tests.jobs.nightly_run import BOOTSTRAP, FIRST, SECOND, NightlyRun, rows_of

pytestmark = pytest.mark.slow

THIRD = "2024-03-06"
RANKS = [11, 60]
SETTINGS = {"negatives": {"uniform": 2, "popularity": 1, "coarse": 1, "fine": 0, "mined": 2, "mined_ranks": RANKS}}
FLAGS = [flag for key, value in SETTINGS.items() for flag in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def mined(first_night_copy: NightlyRun) -> tuple[NightlyRun, str]:
    """The second night with mined negatives, and the release of the first night."""
    release = first_night_copy.current()
    first_night_copy.run("nightly", "--ds", SECOND, *FLAGS)
    assert first_night_copy.current().startswith(SECOND)
    return first_night_copy, release


def by_row(run: NightlyRun) -> dict[int, list[tuple[int, int, float]]]:
    """Negatives of each row of the second night: (item, kind, log q). Packed rows are unpacked."""
    made = {}
    for row in run.rows("samples", SECOND):
        keys = row["row_key"] if isinstance(row["row_key"], list) else [row["row_key"]]
        slots = list(zip(row["negatives"], row["negative_kinds"], row["negative_log_q"]))
        total = run.manifest("samples", SECOND)["facts"]["negatives"]
        made |= {key: slots[place * total : (place + 1) * total] for place, key in enumerate(keys)}
    return made


def mined_of(run: NightlyRun) -> dict[str, set[int]]:
    """The mined negatives of each user, over all rows."""
    of_user: dict[str, set[int]] = defaultdict(set)
    for row in run.rows("samples", SECOND):
        chosen = zip(row["negatives"], row["negative_kinds"])
        of_user[row["user_id"]] |= {item for item, kind in chosen if kind == MINED}
    return of_user


def test_mined_negatives_are_new_to_the_user_and_from_the_ranks_of_the_release(mined: tuple[NightlyRun, str]) -> None:
    run, release = mined
    facts = run.manifest("samples", SECOND)["facts"]
    rows = run.manifest("samples", SECOND)["rows"]
    assert facts["mined_from"] == release
    assert facts["kinds"]["mined"] > 0.9 * 2 * rows
    assert facts["quotas"]["mined"] == 2
    assert run.manifest("mined_candidates", SECOND)["facts"]["ranks"] == RANKS

    index = {row["item_id"]: row["item_index"] for row in run.rows("item_stats", SECOND)}
    live = {row["item_index"] for row in run.rows("item_stats", SECOND) if row["live"]}
    candidates = {row["user_id"]: row["items"] for row in run.rows("mined_candidates", SECOND)}
    taken: dict[str, set[int]] = defaultdict(set)
    for row in run.rows("interactions", SECOND):
        taken[str(row["user_id"])].add(index[str(row["item_id"])])
    for row in run.rows("ranking_logs", SECOND):
        if row["stage"] == "exposed":
            taken[str(row["user_id"])].add(index[str(row["item_id"])])
    for row in run.rows("user_histories", SECOND):
        taken[row["user_id"]] |= set(row["known_items"])
    assert candidates.keys() == {row["user_id"] for row in run.rows("positives", SECOND) if row["split"]}
    for user, items in mined_of(run).items():
        assert items <= set(candidates[user]) & live - taken[user]
    assert max(map(len, candidates.values())) <= RANKS[1] - RANKS[0] + 1


def test_candidates_start_at_the_first_rank_of_what_the_release_recommends(
    mined: tuple[NightlyRun, str], tmp_path: Any
) -> None:
    """At the end of the first night, recommend with the release of that night ranks the same items."""
    run, release = mined
    folder = tmp_path / "top"
    run.run(
        "recommend", "--ds", FIRST, "--release", release, "--k", "60", "--exclude-seen", "--output", str(folder), *FLAGS
    )
    index = {row["item_id"]: row["item_index"] for row in run.rows("item_stats", SECOND)}
    live = {row["item_index"] for row in run.rows("item_stats", SECOND) if row["live"]}
    ranked: dict[str, dict[int, int]] = defaultdict(dict)
    for row in rows_of(folder):
        ranked[str(row["user_id"])][row["rank"]] = index[str(row["item_id"])]
    compared = 0
    for row in run.rows("mined_candidates", SECOND):
        if row["user_id"] in ranked:
            items = [ranked[row["user_id"]][rank] for rank in range(RANKS[0], RANKS[1] + 1)]
            # At each end, two items whose scores are equal up to rounding may change places.
            assert len(set(row["items"]) ^ (set(items) & live)) <= 4
            compared += 1
    assert compared > 20


def test_the_night_again_takes_the_same_release_and_gives_the_same_rows(mined: tuple[NightlyRun, str]) -> None:
    run, release = mined
    rows, candidates = run.rows("samples", SECOND), run.rows("mined_candidates", SECOND)
    assert "already done" in run.run("build_negatives", "--ds", SECOND, *FLAGS)
    run.run("build_negatives", "--ds", SECOND, *FLAGS, "--force")
    assert run.manifest("samples", SECOND)["facts"]["mined_from"] == release
    assert run.rows("mined_candidates", SECOND) == candidates
    assert run.rows("samples", SECOND) == rows


def test_an_update_within_the_day_takes_the_release_of_the_night_before(mined: tuple[NightlyRun, str]) -> None:
    run, _ = mined
    release = run.current()
    run.run("incremental", "--ds", THIRD, "--until", f"{THIRD}T12:00", *FLAGS)
    folder = run.warehouse / "updates" / f"ds={THIRD}" / "001" / "samples" / f"ds={THIRD}"
    facts = json.loads((folder / "_manifest.json").read_text())["facts"]
    assert facts["mined_from"] == release
    assert facts["kinds"]["mined"] > 0


def test_packed_rows_have_the_same_negatives(mined: tuple[NightlyRun, str]) -> None:
    run, _ = mined
    plain = by_row(run)
    run.run("build_negatives", "--ds", SECOND, *FLAGS, "--set", "samples.pack=4")
    assert run.manifest("samples", SECOND)["facts"]["pack"] == 4
    assert by_row(run) == plain


def test_a_bootstrap_has_no_release_and_takes_none_of_another_bootstrap(mined: tuple[NightlyRun, str]) -> None:
    run, _ = mined
    run.run("build_positives", "--ds", SECOND, *BOOTSTRAP, *FLAGS)
    output = run.run("build_negatives", "--ds", SECOND, *FLAGS)
    assert "negatives.mined needs the release of an earlier night of this bootstrap, and there is none" in output
    facts = run.manifest("samples", SECOND)["facts"]
    assert (facts["mined_from"], facts["kinds"]["mined"]) == (None, 0)
    assert not (run.warehouse / "mined_candidates" / f"ds={SECOND}").exists()
    assert facts["fallback_share"] < 0.5  # places of mined negatives do not count
