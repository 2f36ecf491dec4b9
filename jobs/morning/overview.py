"""The overview of several nights: one row per night with its verdict, and links to their pages."""

from jobs.common.runner import Context
from jobs.morning.headline import headline_of
from jobs.morning.markup import Markup, element, joined, table
from jobs.morning.night_files import NightFiles
from jobs.morning.page import document
from jobs.morning.quality_sections import trend_section
from jobs.morning.record import FOLDER, PAGE

OVERVIEW = "nights.html"
STYLES = {"published": "good", "refused": "bad", "failed": "bad"}


def write_overview(context: Context, nights: list[Context]) -> str:
    """Write `reports/nights.html` on these nights, oldest first. Returns its URI."""
    uri = f"{context.warehouse.path(FOLDER)}/{OVERVIEW}"
    context.warehouse.write_text(uri, overview(nights))
    return uri


def overview(nights: list[Context]) -> str:
    """The overview as HTML, newest night first."""
    files = [NightFiles(night) for night in nights]
    first, last = files[0], files[-1]
    rows = [_row(night) for night in reversed(files)]
    header = ("night", "", f"Recall@{last.k}", "on best baseline", "samples", "loss", "gates")
    heading = element("h1", f"{len(files)} nights, {first.ds} to {last.ds}")
    numbers = table(header, rows, numbers=(2, 3, 4, 5, 6))
    note = element("p", "* of the release of the night before, on this day.", class_="note")
    body = element("main", element("section", heading, numbers, note), trend_section(last))
    return document(f"Nights {first.ds} to {last.ds}", body)


def _row(night: NightFiles) -> list[object]:
    verdict, evaluated = headline_of(night), night.evaluated
    recall, margin, samples, loss, gates = "–", "–", "–", "–", "–"
    if evaluated and (row := evaluated.row("two_tower", night.k)):
        mark = "" if evaluated.ds == night.ds else "*"
        recall = f"{row['value']:.3f}{mark}"
        margin = f"{evaluated.margin.difference:+.3f}{mark}" if evaluated.margin else "–"
    if night.positives is not None:
        samples = f"{night.positives:,}"
    if (model := night.manifest("models")) and not night.no_data_since:
        loss = f"{model.facts['loss']:.3f}"
    if night.verdict:
        gates = f"{sum(gate.passed for gate in night.verdict.gates)} of {len(night.verdict.gates)}"
    link = element("a", night.ds, href=f"ds={night.ds}/{PAGE}")
    badge = element("span", verdict.badge, class_=STYLES.get(verdict.state, "attention"))
    return [link, joined([badge, _cause(verdict.causes)]), recall, margin, samples, loss, gates]


def _cause(causes: list[str]) -> Markup | None:
    return element("small", causes[0][:160]) if causes else None
