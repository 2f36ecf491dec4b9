"""Print tables of nights: samples by kind, loss, recall of the model and of the baselines, releases and their gates.

Every night has a page with much more (reports/ds=DS/report.html in the warehouse): --open shows it in a web browser, --write
makes it again from the small files of the warehouse.
"""

import argparse
import sys
import webbrowser
from collections.abc import Iterator
from urllib.parse import quote

from jobs.common.days import add_days, days_of
from jobs.common.runner import Context, aligned, main, parser
from jobs.morning.overview import write_overview
from jobs.morning.page import write_page
from jobs.morning.record import PAGE, read_record, uri_of
from jobs.night.evaluations import evaluated_night, evaluation_of, headline_k, recalls
from jobs.night.margin import margin_in
from jobs.release.release_id import release_id_at
from jobs.release.store import folder_of
from jobs.release.verdict import Verdict, refused_by, verdict_of
from jobs.tracking.address import record_address
from pipelines.contract.errors import UsageError
from pipelines.contract.negative_kinds import QUOTAS
from pipelines.lost_day import carried_from
from pipelines.samples.packing import positives_in
from pipelines.storage.lineage import described

GATED_NIGHTS = 10  # Only the newest nights: more columns do not fit on a screen.
MODELS = {"two_tower": "model", "popularity": "popularity", "item_cf": "item-CF", "best_reachable": "best reachable"}
BEFORE = "*"  # marks figures of the release of the night before
WITHOUT_PRIOR = {"two_tower_without_prior": "without prior"}  # Only with a recency prior.


def run(context: Context) -> None:
    """Print the tables, the pages of the nights and the command that opens the MLflow UI."""
    k = headline_k(context.config.evaluation.ks)
    models = MODELS | (WITHOUT_PRIOR if context.config.prior_in_use else {})
    kinds = {name: name for name in QUOTAS if name != "mined" or context.config.negatives.mined}
    kinds["popularity"] = "popular"
    header = ["night", "samples", *kinds.values(), "loss", *models.values(), "release"]
    nights = [context.at(ds) for ds in days_of(context.args)]
    table = [header] + [_night(night, k, list(kinds), list(models)) for night in nights]
    print(f"\nRecall@{k} in the columns {', '.join(models.values())}; negatives per kind over all rows\n")
    print(aligned(table))
    for line in _answers(nights):
        print(line)
    trained = [night.warehouse.manifest("models", night.ds) for night in nights]
    if len(lineages := dict.fromkeys(model.lineage for model in trained if model and model.lineage)) > 1:
        print(f"\nThese nights go back to {len(lineages)} bootstraps: {', '.join(map(described, lineages))}")
    stored = {night.ds: verdict_of(night, folder) for night in nights[-GATED_NIGHTS:] if (folder := _release(night))}
    if verdicts := {ds: verdict for ds, verdict in stored.items() if verdict}:
        print("\nGates of each release (! refused, - not checked); `jobs.releases show ID` explains them\n")
        print(aligned(_gates(verdicts)))
    _pages(context, nights)
    print("\nLook closer:", *record_address(context.config, context.warehouse.root).lines(), sep="\n  ")


def _night(context: Context, k: int, kinds: list[str], models: list[str]) -> list[str]:
    warehouse, ds = context.warehouse, context.ds
    samples, model = warehouse.manifest("samples", ds), warehouse.manifest("models", ds)
    if day := carried_from(model):
        return [ds, f"no data: as {day}"] + [""] * (2 + len(kinds) + len(models))
    if samples is None or model is None:
        return [ds, "not run"] + [""] * (2 + len(kinds) + len(models))
    cells = [
        ds,
        f"{positives_in(samples):,}",
        *(f"{samples.facts['kinds'].get(kind, 0):,}" for kind in kinds),  # Earlier versions mined none.
    ]
    cells.append(f"{model.facts['loss']:.4f}")
    evaluated = evaluated_night(context)
    recall = recalls(evaluated, k) if evaluated else {}
    mark = BEFORE if evaluated and evaluated.ds != ds else ""
    cells += [f"{recall[name]:.4f}{mark}" if name in recall else "-" for name in models]
    folder = _release(context)
    if folder is None:
        return [*cells, "not published"]
    release, refused = folder.rpartition("/")[2], refused_by(context, folder)
    return [*cells, f"{release} refused: {', '.join(refused)}" if refused else release]


def _pages(context: Context, nights: list[Context]) -> None:
    """Write and open the pages that the flags ask for, and print where the newest one is."""
    if context.args.write:
        for night in nights:
            if _has_run(night):
                write_page(night)
    pages = {n.ds: uri for n in nights if n.warehouse.exists(uri := uri_of(n.warehouse, n.ds, PAGE))}
    if not pages:
        print("\nNo page of these nights exists: --write makes it for nights that have run")
        return
    shown, what = list(pages.values())[-1], f"Page of {max(pages)}"
    if context.args.write and len(pages) > 1:
        shown, what = write_overview(context, [context.at(ds) for ds in pages]), f"Pages of {len(pages)} nights"
    print(f"\n{what}:  {shown}")
    if context.args.open:
        if not shown.startswith("file://"):
            raise UsageError(f"--open shows local files only: copy {shown} to this machine and open it there")
        webbrowser.open(quote(shown, safe=":/"))


def _has_run(night: Context) -> bool:
    """Whether any step of a night has finished, or the night recorded that it failed."""
    tables = ("positives", "samples", "models")
    return read_record(night.warehouse, night.ds) is not None or any(
        night.warehouse.manifest(t, night.ds) for t in tables
    )


def _answers(nights: list[Context]) -> Iterator[str]:
    """Which question the figures answer, over how many days popularity counts, and where the model is not certainly better."""
    shown = {night.ds: evaluated for night in nights if (evaluated := evaluated_night(night))}
    made = {night.ds: evaluation for night in shown.values() if (evaluation := evaluation_of(night))}
    if earlier := {ds: night.ds for ds, night in shown.items() if night.ds != ds}:
        of = ", ".join(f"{before} on {ds}" for ds, before in earlier.items())
        yield f"\n{BEFORE} of the release of {of}: a night has its own figure when the log of the next day exists"
    facts = {ds: evaluation.facts for ds, evaluation in made.items() if "margin" in evaluation.facts}
    questions: dict[str, list[str]] = {}
    for ds, measured in facts.items():
        questions.setdefault(measured["question"], []).append(ds)
    for question, days in questions.items():
        yield f"\nQuestion{'' if len(questions) == 1 else ' of ' + ', '.join(days)}: {question}"
    windows = dict.fromkeys(measured["popularity"]["days"] for measured in facts.values())
    if windows:
        yield f"Popularity counts the best of evaluation.popularity_days: {', '.join(map(str, windows))}"
    for ds, measured in facts.items():
        margin = margin_in(measured)
        if margin and not margin.certain:
            yield f"WARNING {ds}: {margin.line()}"


def _release(context: Context) -> str | None:
    """The folder of the release of a night; None if it was not published."""
    warehouse = context.warehouse
    release_id = release_id_at(warehouse, context.ds)
    folder = folder_of(warehouse, release_id) if release_id else None
    return folder if folder and warehouse.exists(f"{folder}/manifest.json") else None


def _gates(verdicts: dict[str, Verdict]) -> list[list[str]]:
    """One line per gate: its limit on the newest night, and its value on each night."""
    by_night = {ds: {gate.name: gate for gate in verdict.gates} for ds, verdict in verdicts.items()}
    newest = {name: gate for gates in by_night.values() for name, gate in gates.items()}
    table = [["gate", "must be", *by_night]]
    for name, last in newest.items():
        cells = [
            f"{gate.value:.4g}{'' if gate.passed else ' !'}" if (gate := gates.get(name)) else "-"
            for gates in by_night.values()
        ]
        table.append([name, f"{'>=' if last.at_least else '<='} {last.limit:.4g}", *cells])
    return table


def _flags() -> argparse.ArgumentParser:
    flags = add_days(parser("report", __doc__ or "", with_ds=False))
    flags.add_argument(
        "--write", action="store_true", help="make the page of each night again; of several, an overview too"
    )
    flags.add_argument("--open", action="store_true", help="open the page of the newest night in a web browser")
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run, reads_only=lambda _: True))
