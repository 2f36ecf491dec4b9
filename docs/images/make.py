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

from jobs.common.config import load_config
from jobs.tracking.address import nights_link, tracking_uri
from tests.browser import Browser, browser, mlflow_ui

HERE = Path(__file__).resolve().parent
WIDE, NARROW = 1400, 390  # pixels: a laptop, and a phone


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
        shoot_mlflow(tab, ui, store, config.tracking.experiment, args.output)
        shoot_report(tab, warehouse, args.output)
    return 0


def shoot_mlflow(tab: Browser, ui: str, store: str, experiment: str, output: Path) -> None:
    """The table of nights, their charts, a published and a refused night, and the models."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        sys.exit(f"{store} has no experiment {experiment}: run some nights first")
    experiment_id = found.experiment_id
    tab.open(nights_link(ui, experiment_id), "verdict", width=1700, height=420)
    tab.screenshot(output / "nights.png")
    tab.click("Chart view")
    tab.wait_for("gates/passed")
    tab.screenshot(output / "trend.png")
    for name, verdict in (("published", "Published"), ("refused", "Refused")):
        run = newest(client, experiment_id, verdict)
        tab.open(f"{ui}/#/experiments/{experiment_id}/runs/{run.info.run_id}", verdict, width=WIDE, height=1250)
        tab.screenshot(output / f"night-{name}.png")
    models = f"{ui}/#/experiments/{experiment_id}/models?workflowType=machine_learning"
    tab.open(models, "recall_at_", width=WIDE, height=420)
    tab.screenshot(output / "models.png")


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
    for name, width in (("wide", WIDE), ("narrow", NARROW)):
        tab.open(published[-1].as_uri(), "Recall", width=width, height=900)
        tab.screenshot(output / f"report-{name}.png", whole_page=True, most=2400)


if __name__ == "__main__":
    sys.exit(main())
