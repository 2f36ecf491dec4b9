"""Sections of the page: recall by slice against the baselines, recall over the nights, and the index."""

from collections.abc import Iterator

from jobs.morning.charts import Interval, Line, interval_chart, line_chart
from jobs.morning.markup import Markup, details, element, note, section, table
from jobs.morning.night_files import Evaluated, NightFiles

MODELS = {
    "two_tower": ("model", "model"),
    "two_tower_without_prior": ("model without prior", "without-prior"),
    "popularity": ("popularity", "popularity"),
    "item_cf": ("item-CF", "item-cf"),
    "best_reachable": ("best reachable (simulated truth)", "best"),
}
SLICES = {
    "all": "all targets",
    "head": "popular third",
    "mid": "middle third",
    "tail": "rare third",
    "new_items": "new items",
    "unseen_items": "never clicked",
    "known_users": "known users",
    "new_users": "new users",
}


def recall_section(night: NightFiles) -> Markup:
    """Recall by slice with intervals, beside the baselines, on a question that is named."""
    evaluated = night.evaluated
    if evaluated is None:
        return section(
            "recall", "Recall",
            note("No release has been measured on this night's log or a later one. A first night gets its figure from the "
                 "night after it."),
        )  # fmt: skip
    parts: list[object] = [element("p", _question(night, evaluated))]
    if margin := evaluated.margin:
        style = "good" if margin.certain else "attention"
        parts.append(element("p", element("span", _margin(evaluated), class_=style)))
    groups = []
    for part, says in SLICES.items():
        rows = {model: row for model in MODELS if (row := evaluated.row(model, night.k, part))}
        if rows:
            users = next(iter(rows.values()))["users"]
            intervals = [Interval(*MODELS[m], row["value"], row["low"], row["high"]) for m, row in rows.items()]
            groups.append((says, f"{users:,} users", intervals))
    parts.append(interval_chart(groups, f"Recall@{night.k} by slice, with 95% intervals"))
    parts.append(note(f"Recall@{night.k} with 95% intervals (bootstrap over users)."))
    if windows := evaluated.facts.get("popularity", {}):
        parts.append(note(f"Popularity counts {windows['days']} days, the best of {', '.join(windows['recall'])}."))
    header = ("", *(f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in _cutoffs(evaluated)))
    rows_of_all = list(_all_metrics(evaluated))
    parts.append(details("All metrics and cut-offs", table(header, rows_of_all, numbers=tuple(range(1, len(header))))))
    return section("recall", "Recall against the baselines", *parts)


def _question(night: NightFiles, evaluated: Evaluated) -> str:
    question = evaluated.facts.get("question", "unknown (an earlier version wrote this evaluation)")
    days = evaluated.days
    measured = f" on the log of {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}" if days else ""
    whose = f"the release of this night ({evaluated.release})"
    if evaluated.ds != night.ds:
        whose = f"the release of the night of {evaluated.ds} ({evaluated.release})"
    return f"Question: {question}. Measured{measured}: {whose}."


def _margin(evaluated: Evaluated) -> str:
    margin = evaluated.margin
    assert margin is not None
    name = MODELS.get(margin.baseline, (margin.baseline, ""))[0]
    ends = f" [{margin.low:+.3f}, {margin.high:+.3f}]" if margin.low is not None and margin.high is not None else ""
    certain = "certainly better" if margin.certain else "not certainly better"
    return f"The model is {certain} than {name}, the best baseline: {margin.difference:+.3f}{ends}."


def _cutoffs(evaluated: Evaluated) -> list[int]:
    return sorted({row["k"] for row in evaluated.rows})


def _all_metrics(evaluated: Evaluated) -> Iterator[list[object]]:
    for model, (name, _) in MODELS.items():
        cells = [
            f"{row['value']:.4f}" if (row := evaluated.row(model, k, "all", metric)) else "–"
            for metric in ("recall", "ndcg")
            for k in _cutoffs(evaluated)
        ]
        if any(cell != "–" for cell in cells):
            yield [name, *cells]


def trend_section(night: NightFiles) -> Markup:
    """Recall of the model and the baselines over the last nights."""
    trend = night.trend
    if not trend:
        return section("trend", "Recall over the nights", note("No night has been evaluated yet."))
    lines = []
    for model, (name, style) in MODELS.items():
        rows = [(float(place), row) for place, e in enumerate(trend) if (row := e.row(model, night.k))]
        points = [(place, row["value"]) for place, row in rows]
        band = [(place, row["low"], row["high"]) for place, row in rows] if model == "two_tower" else []
        lines.append(Line(name, style, points, band, dots=model == "two_tower"))
    middle = len(trend) // 2
    ticks = [(float(at), trend[at].ds[5:]) for at in dict.fromkeys((0, middle, len(trend) - 1))]
    chart = line_chart(lines, f"Recall@{night.k} by night", x_ticks=ticks)
    count = f"{len(trend)} evaluated night{'' if len(trend) == 1 else 's'}"
    parts: list[object] = [chart, note(f"Recall@{night.k} of {count}, each with its own release and the log after it.")]
    if len({e.facts.get("question") for e in trend}) > 1:
        parts.append(element("p", "These nights answer different questions, so their figures are not comparable.",
                             class_="attention"))  # fmt: skip
    tested = [(m.ds, m.facts["day_recall"]) for m in night.earlier("models", 7) if m.facts.get("day_recall")]
    if (now := night.facts("models").get("day_recall")) is not None:
        k = night.context.config.gates.recall_at
        usual = ", ".join(f"{value:.3f}" for _, value in tested)
        parts.append(
            note(f"The gate day_recall asks another question, event by event: before training, the release in use had "
                 f"Recall@{k} {now:.3f} on this day{f' (nights before: {usual})' if usual else ''}.")
        )  # fmt: skip
    return section("trend", "Recall over the nights", *parts)


def index_section(night: NightFiles) -> Markup:
    """The chosen index, and the recall of each setting that was tried."""
    index = night.release.get("index")
    if not index:
        return section("index", "Index", note("No release was written in this night."))
    setting = f" with {index['parameter']} = {index['value']}" if index["parameter"] else ", an exact search"
    says = (
        f"{index['factory']}{setting}: recall {index['recall']:.4f} at {index['recall_at']} against exact search, over "
        f"{night.release['items']:,} items."
    )
    parts: list[object] = [element("p", says)]
    sweep = night.release.get("index_sweep", [])
    if index["tried"] != index["factory"]:
        parts.append(
            element("p", f"{index['tried']} did not reach the target, so the index is exact.", class_="attention")
        )
    if sweep:
        values = [float(point["value"]) for point in sweep]
        lines = [
            Line("recall of each setting", "model", [(p["value"], p["recall"]) for p in sweep],
                 [(p["value"], p["at_least"], p["recall"]) for p in sweep], dots=True),
            Line("target", "popularity", [(value, night.context.config.index.recall_target) for value in values]),
        ]  # fmt: skip
        ticks = [(value, f"{value:g}") for value in dict.fromkeys((values[0], values[len(values) // 2], values[-1]))]
        chart = line_chart(lines, "recall by setting of the index", x_ticks=ticks, from_zero=False, log_x=True)
        parts += [chart, note("The smallest setting whose lower bound (shaded) reaches the target is published.")]
    return section("index", "Index", *parts)
