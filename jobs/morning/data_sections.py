"""Sections of the page: what went in, the samples, and the training."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from jobs.morning.charts import Line, line_chart, small_bars
from jobs.morning.markup import Markup, bar, details, element, joined, note, section, table
from jobs.morning.night_files import NIGHTS, NightFiles
from pipelines.drift import INPUTS_OF, NIGHTS_BEFORE
from pipelines.storage.manifest import Manifest

UNUSUAL = (0.7, 1.4)  # rows relative to the median beyond which the page marks an input
RISEN = 0.01  # rise of a share of nulls from which the page marks a column
KINDS = {
    "uniform": "any live item",
    "popularity": "popular items",
    "coarse": "recalled, dropped by coarse ranking",
    "fine": "finely ranked, not exposed",
    "mined": "ranked high by the last release",
}
FUNNEL = {
    "interactions": "interactions of the day",
    "positives": "positives (by action)",
    "dropped_unrewarded": "without reward",
    "dropped_repeated": "exact repeats",
    "dropped_deduplicated": "repeats of user, item and day",
    "dropped_item_not_live": "item not in the snapshot",
    "dropped_known_item": "of an item that the user had before",
    "dropped_over_cap": "over the cap of a user",
    "dropped_downsampled": "down-sampled by popularity",
    "held_back": "held back for validation",
    "carried": "held back last night, used now",
    "kept": "rows of the day",
}


def inputs_section(night: NightFiles) -> Markup:
    """Rows, bad rows and nulls of each input beside earlier nights, and what became of the interactions."""
    rows, nulls = list[list[object]](), list[list[object]]()
    for written, names in INPUTS_OF.items():
        manifest, earlier = night.manifest(written), night.earlier(written, NIGHTS_BEFORE)
        for name in names:
            if manifest and (counted := manifest.facts.get("input", {}).get(name)):
                rows.append(_input_row(name, counted, earlier))
                nulls += _null_rows(name, counted, earlier)
    if not rows:
        return section("inputs", "Inputs", note("No step has read the inputs of this night."))
    numbers = table(("input", "rows", "of usual", "by day", "bad"), rows, numbers=(1, 2, 4))
    marked = [row for row in nulls if row[-1]]
    of_nulls = [element("h3", "More nulls than last night"), _null_table(marked)] if marked else []
    all_nulls = details(f"Nulls of all {len(nulls)} columns", _null_table(nulls)) if nulls else None
    return section("inputs", "Inputs and drift", numbers, *of_nulls, all_nulls, _funnel(night), _vocabularies(night))


def _input_row(name: str, counted: dict[str, Any], earlier: list[Manifest]) -> list[object]:
    by_day: dict[str, int] = {}
    for manifest in earlier:
        by_day |= manifest.facts.get("input", {}).get(name, {}).get("by_day", {})
    by_day |= counted["by_day"]
    days = sorted(by_day)
    newest, before = days[-1], [by_day[day] for day in days[:-1]][-NIGHTS_BEFORE:]
    ratio = by_day[newest] / median(before) if before and median(before) else None
    unusual = ratio is not None and not UNUSUAL[0] <= ratio <= UNUSUAL[1]
    usual = element("span", f"{ratio:.0%}", class_="attention" if unusual else None) if ratio is not None else "–"
    bad = counted["rows"] - counted["good"]
    reasons = [element("small", f"{number:,} bad: {reason}") for reason, number in counted["bad"].items()]
    bars = small_bars([(day, by_day[day]) for day in days[-NIGHTS_BEFORE - 1 :]], f"rows of {name} by day")
    first = joined([name, element("small", newest), *reasons])
    return [first, f"{by_day[newest]:,}", usual, bars, _marked(f"{bad:,}", bool(bad))]


def _null_rows(name: str, counted: dict[str, Any], earlier: list[Manifest]) -> Iterator[list[object]]:
    """Table, column, share of nulls now and in the last night, and whether it has risen."""
    last = earlier[-1].facts.get("input", {}).get(name, {}).get("null_share", {}) if earlier else {}
    for column, share in sorted(counted["null_share"].items(), key=lambda item: (-item[1], item[0])):
        risen = column in last and share - last[column] > RISEN
        yield [name, column, f"{share:.1%}", f"{last[column]:.1%}" if column in last else "–", risen]


def _null_table(rows: list[list[object]]) -> Markup:
    cells = [[*row[:2], _marked(str(row[2]), bool(row[4])), row[3]] for row in rows]
    return table(("input", "column", "nulls", "last night"), cells, numbers=(2, 3))


def _funnel(night: NightFiles) -> Markup | None:
    counts = night.facts("positives").get("counts", {})
    rows = [(says, f"{counts[name]:,}") for name, says in FUNNEL.items() if counts.get(name)]
    return (
        joined([element("h3", "From interactions to rows"), table(("", "rows"), rows, numbers=(1,))]) if rows else None
    )


def _vocabularies(night: NightFiles) -> Markup | None:
    now = night.facts("vocabularies").get("sizes", {})
    before = {} if night.is_bootstrap else night.facts("vocabularies", night.before).get("sizes", {})
    rows = [(name, f"{now[name]:,}", f"{now[name] - before[name]:+,}") for name in sorted(now) if name in before]
    if not rows:
        return None
    return details("Vocabularies and their new values", table(("vocabulary", "values", "new"), rows, numbers=(1, 2)))


def samples_section(night: NightFiles) -> Markup:
    """Training rows, and negatives by kind beside their quota."""
    samples = night.manifest("samples")
    if samples is None or night.positives is None:
        return section("samples", "Samples", note("No samples were written in this night."))
    facts, rows = samples.facts, max(1, night.positives)
    kinds = {kind: number for kind, number in facts["kinds"].items() if kind in KINDS}
    quotas = facts.get("quotas", {})
    most = max([*(number / rows for number in kinds.values()), *quotas.values(), 1e-9])
    drawn = [
        [joined([kind, element("small", KINDS[kind])]), f"{number:,}", f"{number / rows:.2f}",
         quotas.get(kind, "–"), bar(number / rows / most)]
        for kind, number in kinds.items() if number or quotas.get(kind)
    ]  # fmt: skip
    parts: list[object] = [element("p", f"{night.positives:,} positives", _by_split(facts), ".")]
    parts.append(table(("negatives", "drawn", "a row", "quota", ""), drawn, numbers=(1, 2, 3)))
    if not facts.get("ranking_logs", True):
        parts.append(note("This day has no ranking logs, so there are no hard negatives."))
    if share := facts.get("fallback_share"):
        parts.append(note(f"{share:.1%} of the hard negatives were replaced by easy ones, for lack of candidates."))
    return section("samples", "Samples by kind", *parts)


def _by_split(facts: dict[str, Any]) -> str:
    splits = {name: split.get("positives", split["rows"]) for name, split in facts.get("splits", {}).items()}
    if not splits:
        return ""
    return f": {splits.get('train', 0):,} to train on, {splits.get('valid', 0):,} held back for validation"


def popularity_section(night: NightFiles) -> Markup:
    """How concentrated the positives are before and after down-sampling."""
    curve = night.examples.get("popularity", {}).get("curve", [])
    if not curve:
        return section("popularity", "Popularity", note("The night did not write the popularity of its items."))
    lines = [
        Line("all positives of the window", "best", [(rank, before) for rank, before, _ in curve]),
        Line("rows of this night", "model", [(rank, after) for rank, _, after in curve]),
    ]
    items = curve[-1][0]
    ticks = [(10.0**power, f"{10**power:,}") for power in range(12) if 10**power <= items]
    chart = line_chart(lines, "cumulative share of positives by popularity rank", x_ticks=ticks, log_x=True, share=True)
    tenth = min(curve, key=lambda point: abs(point[0] - items / 10))
    says = (
        f"The {tenth[0]:,} most popular of {items:,} items have {tenth[1]:.0%} of the positives, and {tenth[2]:.0%} of the "
        "rows."
    )
    return section(
        "popularity", "Popularity before and after down-sampling", chart,
        note("Cumulative share, by rank of the item (most popular first). ", says),
    )  # fmt: skip


def training_section(night: NightFiles) -> Markup:
    """The loss within the night and over the nights, and the health of the vectors."""
    model = night.manifest("models")
    if model is None:
        return section("training", "Training", note("No model was trained in this night."))
    facts, parts = model.facts, list[object]()
    curve = facts.get("curve", {})
    if steps := curve.get("steps"):
        valid = [(step, loss) for step, _, loss in curve.get("epochs", []) if loss is not None]
        lines = [Line("loss", "model", steps), Line("validation loss, by epoch", "popularity", valid, dots=True)]
        last = steps[-1][0]
        ticks = [(float(at), f"step {at:,}") for at in dict.fromkeys((steps[0][0], last))]
        parts.append(line_chart(lines, "loss by step", x_ticks=ticks, from_zero=False))
    nights = [m for m in (*night.earlier("models", NIGHTS - 1), model) if m.lineage == model.lineage]
    nights = [m for m in nights if "carried_from" not in m.facts and m.facts.get("loss") is not None]
    if len(nights) > 1:
        points = [(float(place), m.facts["loss"]) for place, m in enumerate(nights)]
        ticks = [(0.0, nights[0].ds[5:]), (points[-1][0], nights[-1].ds[5:])]
        parts += [
            element("h3", "Loss over the nights"),
            line_chart([Line("loss", "model", points, dots=True)], "loss by night", x_ticks=ticks, from_zero=False),
        ]
    parts.append(table(("", "tonight", "last night"), _figures(night, facts), numbers=(1, 2)))
    return section("training", "Training", *parts)


def _figures(night: NightFiles, facts: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    before = {} if night.is_bootstrap else night.facts("models", night.before)
    names = {"loss": "loss", "steps": "steps", "rows": "rows read", "epochs": "epochs"}
    health = {"effective_dimensions": "effective dimensions", "mean_cosine": "mean cosine of items",
              "embedding_norm": "norm of item embeddings"}  # fmt: skip
    for name, says in names.items():
        if name in facts:
            yield says, _figure(facts[name]), _figure(before.get(name))
    for name, says in health.items():
        if name in facts.get("health", {}):
            yield says, _figure(facts["health"][name]), _figure(before.get("health", {}).get(name))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _marked(text: str, is_marked: bool) -> object:
    return element("span", text, class_="attention") if is_marked else text
