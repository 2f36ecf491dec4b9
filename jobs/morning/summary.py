"""What jobs.nightly prints at its end: a table with one line a night, one sentence on the last night, and where to look."""

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from jobs.common.runner import Context, aligned
from jobs.morning.headline import BASELINES, headline_of
from jobs.morning.night_files import NightFiles
from jobs.morning.overview import write_overview
from jobs.morning.page import local_if_possible
from jobs.morning.record import PAGE, uri_of
from jobs.tracking.address import record_address
from pipelines.contract.log_lines import duration

EARLIER = "*"  # marks figures of the release of the night before


def summary(context: Context, seconds: Mapping[str, float]) -> str:
    """The text. `seconds`: the nights that this command ran, in order, and how long each took."""
    context = replace(context, warehouse=local_if_possible(context))
    nights = [NightFiles(context.at(ds)) for ds in seconds]
    header = ["night", "samples", "loss", f"Recall@{nights[-1].k}", "best baseline", "gates", "release", "time"]
    table = [header, *([*_cells(night), duration(seconds[night.ds])] for night in nights)]
    lines = [aligned(table)]
    if any(cell.endswith(EARLIER) for row in table for cell in row):
        lines.append(f"{EARLIER} of the release of the night before, on this day")
    headline = headline_of(nights[-1])
    record = record_address(context.config, context.warehouse.root)
    lines += [
        "",
        f"{headline.badge}. {headline.sentence}",
        "",
        "Look closer:",
        *(f"  {line}" for line in record.lines()),
    ]
    if page := _page(nights):
        lines.append(f"  or, without MLflow: {page}")
    return "\n".join(["", *lines, ""])


def _page(nights: list[NightFiles]) -> str | None:
    """The link of the page of a night, or of the overview of several; None if none was written."""
    pages = {
        night.ds: uri for night in nights if night.warehouse.exists(uri := uri_of(night.warehouse, night.ds, PAGE))
    }
    if not pages:
        return None
    contexts = [night.context for night in nights if night.ds in pages]
    uri = write_overview(contexts[-1], contexts) if len(pages) > 1 else next(iter(pages.values()))
    return quote(uri, safe="/:=@")


def _cells(night: NightFiles) -> list[str]:
    """The cells of a night, without its time."""
    if night.no_data_since:
        return [night.ds, f"as {night.no_data_since}", *("-" for _ in range(5))]
    evaluated, verdict, loss = night.evaluated, night.verdict, night.facts("models").get("loss")
    recall = evaluated.row("two_tower", night.k) if evaluated else None
    mark = EARLIER if evaluated and evaluated.ds != night.ds else ""
    rows = {label: row for name, label in BASELINES.items() if evaluated and (row := evaluated.row(name, night.k))}
    best = max(rows, key=lambda name: rows[name]["value"], default=None)
    return [
        night.ds,
        "-" if night.positives is None else f"{night.positives:,}",
        "-" if loss is None else f"{loss:.4f}",
        f"{recall['value']:.4f}{mark}" if recall else "-",
        f"{best} {rows[best]['value']:.4f}{mark}" if best else "-",
        f"{sum(gate.passed for gate in verdict.gates)} of {len(verdict.gates)}" if verdict else "-",
        night.release_id or "-",
    ]
