"""Sections of the page: the gates, and what changed in the config since the last night."""

from jobs.morning.markup import Markup, element, note, section, table
from jobs.morning.night_files import NightFiles
from jobs.morning.record import changes
from jobs.release.verdict import Gate

LONGEST = 160  # characters of a setting


def gates_section(night: NightFiles) -> Markup:
    """Each gate with its value and limit; those that refused come first."""
    verdict = night.verdict
    if verdict is None:
        return section("gates", "Gates", note("No gate was checked in this night."))
    gates = element(
        "ul", *(_gate(gate) for gate in sorted(verdict.gates, key=lambda gate: gate.passed)), class_="gates"
    )
    against = note(f"Compared with release {verdict.against}.") if verdict.against else None
    unchecked = [note("Not checked: ", text) for text in verdict.notes]
    return section("gates", "Gates", gates, against, *unchecked)


def _gate(gate: Gate) -> Markup:
    limit = element("span", f"(must be {'≥' if gate.at_least else '≤'} {gate.limit:.4g})", class_="soft")
    passed = element("span", "passed" if gate.passed else "refused", class_="good" if gate.passed else "bad")
    row = element("div", element("b", gate.name), element("span", f"{gate.value:.4g} ", limit), passed, class_="row")
    return element("li", row, element("small", gate.says))


def config_section(night: NightFiles) -> Markup:
    """The settings that differ from those of the last night."""
    title, now, before = "Config since last night", night.record, night.record_before
    if now is None:
        return section("config", title, note("This night wrote no record of its config."))
    if before is None:
        return section("config", title, note("No earlier night has a record of its config to compare with."))
    rows = [[element("code", key), _short(old), _short(new)] for key, old, new in changes(before, now)]
    if not rows:
        return section("config", title, element("p", f"No setting changed since the night of {before.ds}."))
    return section("config", title, table(("setting", before.ds, night.ds), rows))


def _short(value: str) -> Markup:
    if not value:
        return element("span", "not set", class_="soft")
    return element("code", value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
