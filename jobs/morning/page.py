"""The page of a night: report.html, one file without external resources, made from the small files of the warehouse."""

from dataclasses import replace
from datetime import date

from jobs.common.runner import Context, log
from jobs.morning.data_sections import inputs_section, popularity_section, samples_section, training_section
from jobs.morning.example_sections import items_section, users_section
from jobs.morning.headline import BASELINES, Headline, change_of, command, headline_of
from jobs.morning.markup import Markup, element, joined
from jobs.morning.night_files import NightFiles
from jobs.morning.quality_sections import index_section, recall_section, trend_section
from jobs.morning.record import PAGE, uri_of
from jobs.morning.release_sections import config_section, gates_section
from jobs.morning.style import CSS
from pipelines.storage.local_warehouse import LocalWarehouse
from pipelines.storage.warehouse import Warehouse

ANCHORS = {
    "recall": "Recall", "trend": "Nights", "gates": "Gates", "inputs": "Inputs", "samples": "Samples",
    "popularity": "Popularity", "training": "Training", "index": "Index", "config": "Config", "users": "Users",
    "items": "Items",
}  # fmt: skip
FLOW = (
    recall_section, trend_section, gates_section, config_section, index_section, inputs_section, samples_section,
    popularity_section, training_section,
)  # fmt: skip
NO_RESOURCES = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is loaded, and no script runs


def write_page(context: Context) -> str:
    """Write the page of ds from the small files of the warehouse, without Spark if it is local. Returns its URI."""
    uri = uri_of(context.warehouse, context.ds, PAGE)
    context.warehouse.write_text(uri, page(context))
    return uri


def refresh_page(context: Context) -> None:
    """Write the page of ds again if the night wrote one. An error is a warning."""
    try:
        local = replace(context, warehouse=local_if_possible(context))
        if local.warehouse.exists(uri_of(local.warehouse, local.ds, PAGE)):
            write_page(local)
    except Exception as error:
        log.warning("report %s: the page was not written: %s", context.ds, one_line(error))


def one_line(error: Exception) -> str:
    """An error as one line for the log. Errors of the JVM have its stack trace after their first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def page(context: Context) -> str:
    """The page of the night of ds as HTML. A part whose files are missing says so."""
    night = NightFiles(context)
    verdict = headline_of(night)
    body = element(
        "main",
        _header(night, verdict),
        element("nav", *(element("a", name, href=f"#{anchor}") for anchor, name in ANCHORS.items())),
        element("div", *(section_of(night) for section_of in FLOW), class_="flow"),
        users_section(night),
        items_section(night),
        _footer(night),
    )
    return document(f"{verdict.badge}: night of {night.ds}", body)


def document(title: str, body: Markup) -> str:
    """A whole HTML document, which loads nothing and runs no script."""
    head = element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{NO_RESOURCES}">'),
        element("title", title),
        element("style", Markup(CSS)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def local_if_possible(context: Context) -> Warehouse:
    """The warehouse of a context, read and written without the JVM if it is local: the JVM may have died."""
    root = context.warehouse.root
    return LocalWarehouse(root.removeprefix("file://")) if root.startswith("file:///") else context.warehouse


def _header(night: NightFiles, verdict: Headline) -> Markup:
    weekday = date.fromisoformat(night.ds).strftime("%a")
    day = element("p", f"Night of {weekday} {night.ds} ", element("span", verdict.badge, class_="badge"), class_="day")
    causes = _alarm("Cause", verdict.causes) if verdict.causes else None
    remedies = _alarm("Remedy", verdict.remedies, "warn") if verdict.remedies else None
    margin = night.evaluated.margin if night.evaluated else None
    warning = None
    if margin and not margin.certain:
        baseline = BASELINES.get(margin.baseline, margin.baseline)
        warning = _alarm("Warning", [f"The model is not certainly better than {baseline}: {margin.line()}."], "warn")
    return element(
        "header", day, element("h1", verdict.sentence), causes, remedies, warning, _tiles(night),
        class_=f"verdict {verdict.state}",
    )  # fmt: skip


def _alarm(title: str, lines: list[str], style: str = "") -> Markup:
    return element(
        "div", element("h3", title), element("ul", *(element("li", _with_command(line)) for line in lines)),
        class_=f"alarm {style}".strip(),
    )  # fmt: skip


def _with_command(line: str) -> Markup:
    """A line whose command, which it ends with, is set as code."""
    before, found, after = line.partition(": python -m ")
    return joined([f"{before}: ", element("code", f"python -m {after}")]) if found else joined([line])


def _tiles(night: NightFiles) -> Markup:
    """The key figures."""
    evaluated, model, verdict = night.evaluated, night.manifest("models"), night.verdict
    tiles: list[tuple[str, str, str]] = []
    if evaluated and (row := evaluated.row("two_tower", night.k)):
        on = ", ".join(evaluated.days[:1]) or "held out"
        tiles.append((f"Recall@{night.k}", f"{row['value']:.3f}", f"[{row['low']:.3f}, {row['high']:.3f}] on {on}"))
        if change := change_of(night):
            tiles.append(("change", f"{change[0]:+.3f}", f"since {change[1].ds}"))
        if margin := evaluated.margin:
            name = BASELINES.get(margin.baseline, margin.baseline)
            tiles.append(
                (f"against {name}", f"{margin.difference:+.3f}", "certain" if margin.certain else "not certain")
            )
    if night.positives is not None:
        tiles.append(("samples", f"{night.positives:,}", "positives"))
    if model and not night.no_data_since:
        epochs = model.facts.get("epochs", "?")
        tiles.append(("loss", f"{model.facts['loss']:.3f}", f"{epochs} epoch{'' if epochs == 1 else 's'}"))
    if verdict:
        passed = sum(gate.passed for gate in verdict.gates)
        tiles.append(("gates", f"{passed} of {len(verdict.gates)}", "passed"))
    if night.release:
        tiles.append(("items", f"{night.release['items']:,}", night.release["index"]["factory"]))
    shown = (
        element("div", element("dt", name), element("dd", value, element("small", small)))
        for name, value, small in tiles
    )
    return element("dl", *shown, class_="tiles")


def _footer(night: NightFiles) -> Markup:
    record, samples = night.record, night.manifest("samples")
    lines = []
    if record and record.seconds:
        steps = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in record.seconds.items())
        lines.append(f"Time of the steps: {steps}.")
    if samples and samples.lineage:
        lines.append(f"Lineage (bootstrap): {samples.lineage}.")
    lines.append(f"Nightjar {record.code_version if record else ''}. This page is written anew by: ")
    parts = [*lines, element("code", f"{command(night, 'report')} --write")]
    return element("footer", *(joined([" ", part]) for part in parts))
