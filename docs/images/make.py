"""Makes the screenshots in docs/images from the warehouse of the demo, with a headless Chromium.

After `make demo`, run one more night that a gate refuses, then this script:

    python -m jobs.nightly --config conf/demo.yaml --ds 2024-03-10 --set gates.effective_dimensions=30
    python -m docs.images.make --config conf/demo.yaml
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from PIL import Image

from jobs.common.config import load_config
from jobs.tracking.address import nights_link, tracking_uri
from tests.browser import Browser, browser, mlflow_ui

HERE = Path(__file__).resolve().parent
WIDE, NARROW = 1400, 390  # pixels: a laptop, and a phone
COLOURS = 128


def main() -> int:
    """Write the screenshots. Returns the exit code."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--config", required=True, help="the config of the nights")
    flags.add_argument("--output", type=Path, default=HERE, help="the folder of the images")
    args = flags.parse_args()
    config = load_config(args.config)
    warehouse = Path(config.warehouse).resolve()
    store = tracking_uri(config, f"file://{warehouse}")
    args.output.mkdir(parents=True, exist_ok=True)
    with mlflow_ui(store) as ui, browser() as tab:
        pages = Pages(tab, ui, MlflowClient(store), config.tracking.experiment, args.output)
        for shoot in (pages.nights, pages.trend, pages.published, pages.refused, pages.models):
            shoot()
        shoot_report(tab, warehouse, args.output)
    for image in args.output.glob("*.png"):
        reduce_colours(image)
    return 0


class Pages:
    """The pages of the MLflow UI."""

    def __init__(self, tab: Browser, ui: str, client: MlflowClient, experiment: str, output: Path) -> None:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            sys.exit(f"there is no experiment {experiment}: run some nights first")
        self._tab, self._ui, self._client, self._output = tab, ui, client, output
        self._experiment = found.experiment_id

    def nights(self) -> None:
        """The table of nights, as the link of a night opens it."""
        self._tab.open(nights_link(self._ui, self._experiment), "verdict", width=1800, height=460)
        self._tab.screenshot(self._output / "nights.png")

    def trend(self) -> None:
        """The charts of the nights: one click from their table."""
        self._tab.open(nights_link(self._ui, self._experiment), "verdict", width=WIDE, height=900)
        self._tab.click("input[value=CHART]")
        self._tab.wait_for("eval")
        self._tab.screenshot(self._output / "trend.png")

    def published(self) -> None:
        """The newest published night."""
        self._night("Published", "night-published.png")

    def refused(self) -> None:
        """The newest night that a gate refused."""
        self._night("Refused", "night-refused.png")

    def models(self) -> None:
        """The logged models, one for each release."""
        link = f"{self._ui}/#/experiments/{self._experiment}/models?workflowType=machine_learning"
        self._tab.open(link, "recall_at_", width=1800, height=460)
        self._tab.screenshot(self._output / "models.png")

    def _night(self, verdict: str, name: str) -> None:
        run = newest(self._client, self._experiment, verdict)
        link = f"{self._ui}/#/experiments/{self._experiment}/runs/{run.info.run_id}"
        self._tab.open(link, verdict, width=WIDE, height=925)
        self._tab.screenshot(self._output / name)


def newest(client: MlflowClient, experiment_id: str, verdict: str) -> Any:
    """The newest night with a verdict."""
    runs = client.search_runs([experiment_id], f"tags.verdict LIKE '{verdict}%'", max_results=1)
    if not runs:
        sys.exit(f"no night is {verdict.lower()}: see the top of {Path(__file__).name}")
    return runs[0]


def shoot_report(tab: Browser, warehouse: Path, output: Path) -> None:
    """The page of the newest published night, on a wide and on a narrow screen."""
    pages = sorted(warehouse.glob("reports/ds=*/report.html"))
    published = [page for page in pages if "Published" in page.read_text()] or pages
    if not published:
        sys.exit(f"{warehouse} has no report.html")
    for name, width, most in (("wide", WIDE, 1300), ("narrow", NARROW, 1440)):
        tab.open(published[-1].as_uri(), "Recall", width=width, height=900)
        tab.screenshot(output / f"report-{name}.png", whole_page=True, most=most)


def reduce_colours(image: Path) -> None:
    """Write a screenshot again with a palette: a third of the bytes, and no visible difference on flat pages."""
    with Image.open(image) as opened:
        small = opened.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(image, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
