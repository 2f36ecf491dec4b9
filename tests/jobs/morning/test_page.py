"""The page of a night: its parts, its escaping, and what it says of a night that was refused, failed or has no data."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs.morning.charts import nice_ticks
from jobs.morning.markup import Markup, element
from jobs.morning.overview import overview
from jobs.morning.page import ANCHORS, page
from jobs.morning.record import Failure
from tests.jobs.morning.nights import (
    DS,
    EVIL,
    PASSES,
    QUESTION,
    REFUSES,
    context,
    release_at,
    write,
    write_evaluation,
    write_json,
    write_model,
    write_nights,
    write_record,
    write_release,
)  # fmt: skip

VOID = {"meta"}


class Outline(HTMLParser):
    """Reads a page: refuses elements that are not closed in order, and collects text by the id of its section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.section, self.text = "", dict[str, str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        values = dict(attrs)
        assert not {"src", "onclick", "onload"} & values.keys()
        if tag == "section":
            self.section = values.get("id") or "section"
        if tag == "header":
            self.section = "header"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + " " + data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of four nights; the last one is published, and evaluated through the release before it."""
    write_nights(tmp_path)
    return tmp_path


def read(root: Path, **settings: object) -> Outline:
    return Outline(page(context(root, **settings)))


def test_a_published_night_has_every_part(root: Path) -> None:
    read_page = read(root)
    assert read_page.text.keys() >= {"header", *ANCHORS}
    header = read_page.text["header"]
    assert (
        f"Release {release_at(root, DS)}: Recall@50 of the release of 2024-03-08 on this day 0.420 [0.400, 0.440]"
        in header
    )
    assert "+0.010 on the night before" in header
    assert "+0.090 on item-CF" in header
    assert "1 of 1 gates passed" in header
    assert QUESTION in read_page.text["recall"]
    assert "certainly better than item-CF" in read_page.text["recall"]
    assert "rare third" in read_page.text["recall"]
    assert "of 3 evaluated nights" in read_page.text["trend"]
    assert "training.epochs" in read_page.text["config"]
    assert "nprobe = 4" in read_page.text["index"]
    assert read_page.text["users"].count("Retrieved") == 20
    assert read_page.text["items"].count("nearest") == 10


def test_the_page_loads_nothing_and_runs_nothing(root: Path) -> None:
    text = page(context(root))
    assert not {"script", "link", "img", "iframe"} & Outline(text).names
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text


def test_text_from_tables_is_escaped(root: Path) -> None:
    text = page(context(root))
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") == 6
    assert element("b", "<i>", Markup("<i></i>"), title='"') == '<b title="&quot;">&lt;i&gt;<i></i></b>'


def test_inputs_that_differ_from_earlier_nights_are_marked(root: Path) -> None:
    text = page(context(root))
    assert '<span class="attention">48%</span>' in text, "480 rows, and 1,010 usually"
    inputs = Outline(text).text["inputs"]
    assert re.search(r"More nulls than last night .* reward +25\.0% +0\.0%", inputs)


def test_a_refused_night_begins_with_cause_and_remedy(root: Path) -> None:
    write_release(root, DS, (PASSES, REFUSES))
    write_release(root, "2024-03-08", (PASSES,))
    header = read(root).text["header"]
    assert "Refused" in header
    assert "gate recall_loss refused it" in header
    assert f"release {release_at(root, '2024-03-08')} stays in use" in header
    assert "recall_loss 0.21 (must be <= 0.05): REFUSED" in header
    command = f"python -m jobs.publish_items --config conf/my.yaml --ds {DS} --set gates.recall_loss=LIMIT"
    assert header.index("Cause") < header.index("Remedy") < header.index(command) < header.index("samples")


def test_a_release_that_was_rolled_back_names_the_one_in_use(root: Path) -> None:
    content = {"release_id": "2024-03-08-old", "ds": "2024-03-08", "rolled_back": [release_at(root, DS)]}
    write_json(root, "releases/current.json", content)
    header = read(root).text["header"]
    assert "Rolled back" in header
    assert "In use now: 2024-03-08-old." in header


def test_a_failed_night_has_a_page_with_the_parts_that_exist(root: Path) -> None:
    for table in ("models", "item_embeddings"):
        shutil.rmtree(root / table / f"ds={DS}")
    error = "table samples: 3 rows are bad. Correct them"
    write_record(root, DS, {}, Failure("train", error, 3, f"{DS}T04:00:00+00:00"))
    read_page = read(root)
    header = read_page.text["header"]
    assert "Step train failed, so nothing was published" in header
    assert header.index("Cause") < header.index(error) < header.index("Remedy")
    assert f"python -m jobs.nightly --config conf/my.yaml --ds {DS}" in header
    assert "No model was trained" in read_page.text["training"]
    assert "480 positives" in read_page.text["samples"]
    assert "No release was written" in read_page.text["index"]


def test_a_failure_that_was_overcome_is_not_shown(root: Path) -> None:
    write_record(root, DS, {}, Failure("train", "out of memory", 1, f"{DS}T02:00:00+00:00"))
    assert "out of memory" not in page(context(root)), "the model was written at 03:00"
    write_record(root, DS, {}, Failure("train", "out of memory", 1, f"{DS}T04:00:00+00:00"))
    header = read(root).text["header"]
    assert "A later run of this night failed in step train: out of memory" in header
    assert f"Release {release_at(root, DS)}" in header


def test_a_night_of_which_nothing_is_left_has_a_page(tmp_path: Path) -> None:
    read_page = read(tmp_path)
    assert "No step has finished" in read_page.text["header"]
    assert read_page.text.keys() >= set(ANCHORS)


def test_a_lost_day_says_which_night_it_carries(root: Path) -> None:
    write(root, "models", DS, carried_from="2024-03-08", loss=1.0)
    assert "State and model are those of 2024-03-08" in read(root).text["header"]


def test_a_model_that_is_not_certainly_better_is_a_warning_at_the_top(root: Path) -> None:
    write_evaluation(root, "2024-03-08", 2, better=False)
    assert "The model is not certainly better than item-CF" in read(root).text["header"]


def test_the_own_evaluation_of_a_night_is_preferred(root: Path) -> None:
    write_evaluation(root, DS, 9)
    header = read(root).text["header"]
    assert "Recall@50 0.490 [0.470, 0.510]" in header


def test_a_bootstrap_has_no_figures_of_the_night_before(tmp_path: Path) -> None:
    write_nights(tmp_path, 1)
    write_model(tmp_path, DS, 0)
    read_page = read(tmp_path)
    assert "A first night gets its figure from the night after it" in read_page.text["recall"]
    assert "No earlier night has a record" in read_page.text["config"]


def test_the_overview_links_to_the_page_of_each_night(root: Path) -> None:
    nights = [context(root, ds) for ds in ("2024-03-07", "2024-03-08", DS)]
    text = overview(nights)
    Outline(text)
    assert re.findall(r'href="ds=(\S+)/report.html"', text) == [DS, "2024-03-08", "2024-03-07"]
    assert "0.420*" in text, "the newest night shows the release before it"


@pytest.mark.parametrize(("low", "high"), [(0, 0.43), (5.1, 7.9), (0, 0), (-3, 1e6), (0.031, 0.032)])
def test_ticks_are_few_and_cover_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
