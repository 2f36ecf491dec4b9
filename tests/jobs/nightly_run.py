"""A small house that several tests live in: simulated logs, the jobs as processes, what stands in the warehouse."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.jobs.job_server import WarmJobs
from tests.joining import chosen_joins

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "2024-03-04", "2024-03-05"
SPARK = {"spark.sql.shuffle.partitions": 2, "spark.driver.memory": "2g"} | chosen_joins()
CONFIG = """
warehouse: {warehouse}
simulation: {{start: "2024-03-01", days: 6, users: 150, items: 400, requests_per_user: 1.5,
             recalled: 100, coarse_kept: 40, fine_kept: 20, exposed: 10}}
features:
  user: [{{kind: categorical, name: age}}, {{kind: multi_categorical, name: interests, max_values: 4}}]
  item: [{{kind: categorical, name: category}}, {{kind: numeric, name: price}}]
  history: {{length: 10}}
positives: {{valid_hours: 3}}
gates: {{least_users: 5}}
negatives: {{uniform: 2, popularity: 1, coarse: 1, fine: 1}}
samples: {{row_group_rows: 128, trainers: 2}}
model: {{tower: senet, dim: 16, hidden: [], embedding_dim: 8, history_features: [category]}}
loss: {{temperature: 0.2, self_supervision: {{weight: 0.05, items: 64}}}}
training: {{batch_size: 128, bootstrap_epochs: 4, embedding_learning_rate: 0.02}}
evaluation: {{simulated_truth: true, bootstrap_samples: 50}}
index: {{factory: "IVF16,Flat", recall_target: 0.5, recall_at: 20, sweep_queries: 60}}
spark: {spark}
"""


def command(job: str, *flags: str) -> list[str]:
    """A job as a process of its own, to be started in ROOT."""
    return [sys.executable, "-m", f"jobs.{job}", *flags]


@cache
def warm_jobs() -> WarmJobs:
    """Where `run` runs jobs."""
    return WarmJobs(ROOT)


def run(job: str, *flags: str, code: int = 0, env: dict[str, str] | None = None, traces: bool = False) -> str:
    """A job to its end; its output, and an assertion on how it ended. `traces`: its trainers may print theirs.

    `env`: the environment of a process of its own.
    """
    if env is None:
        ended, said = warm_jobs().run(job, *flags, timeout=1800)
    else:
        done = subprocess.run(command(job, *flags), cwd=ROOT, capture_output=True, text=True, timeout=1800, env=env)
        ended, said = done.returncode, done.stdout + done.stderr
    assert ended == code, said[-4000:]
    assert traces or "Traceback" not in said, said[-4000:]
    return said


@dataclass(frozen=True)
class House:
    folder: Path
    config: str

    @classmethod
    def build(cls, folder: Path) -> "House":
        """A house with simulated logs and no night yet."""
        house = cls._at(folder)
        run("simulate_logs", "--config", house.config)
        return house

    @classmethod
    def _at(cls, folder: Path) -> "House":
        folder.mkdir(exist_ok=True)
        house = cls(folder, str(folder / "night.yaml"))
        Path(house.config).write_text(CONFIG.format(warehouse=house.warehouse, spark=json.dumps(SPARK)))
        return house

    def copy(self, folder: Path) -> "House":
        """Another house with all that is in this one. Nights that are done are done again there: inputs have other paths."""
        house = self._at(folder)
        shutil.copytree(self.warehouse, house.warehouse)
        return house

    @property
    def warehouse(self) -> Path:
        return self.folder / "my warehouse"

    def manifest(self, table: str, ds: str) -> dict[str, Any]:
        return json.loads((self.warehouse / table / f"ds={ds}" / "_manifest.json").read_text())

    def current(self) -> str:
        return json.loads((self.warehouse / "releases" / "current.json").read_text())["release_id"]

    def rows(self, table: str, ds: str) -> list[dict[str, Any]]:
        return rows_of(self.warehouse / table / f"ds={ds}")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Every row of the Parquet files under a folder, in an order of their own."""
    found = [row for file in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(found, key=repr)
