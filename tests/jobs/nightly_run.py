"""A small simulated product, and the jobs' command lines on its warehouse: what most tests of jobs start from."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.jobs.job_server import JobServer
from tests.joining import INTERPRETED, chosen_joins

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "2024-03-04", "2024-03-05"
BOOTSTRAP = ("--bootstrap-days", "4")  # flags of the first night
# Compiled expressions are tested by tests/pipelines and by the copy of the demo.
SPARK = {"spark.sql.shuffle.partitions": 2, "spark.driver.memory": "2g"} | INTERPRETED | chosen_joins()
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
    """Command line that runs a job in a new process. Its working directory must be ROOT."""
    return [sys.executable, "-m", f"jobs.{job}", *flags]


@cache
def job_server() -> JobServer:
    """The process in which `run_job` runs jobs."""
    return JobServer(ROOT)


def run_job(
    job: str, *flags: str, code: int = 0, env: dict[str, str] | None = None, allow_traceback: bool = False
) -> str:
    """Run a job to its end, assert its exit code and that it prints no traceback, and return its output.

    The job runs in `job_server()`, or in a new process with the environment `env` if that is given.
    """
    if env is None:
        exit_code, output = job_server().run(job, *flags, timeout=1800)
    else:
        done = subprocess.run(command(job, *flags), cwd=ROOT, capture_output=True, text=True, timeout=1800, env=env)
        exit_code, output = done.returncode, done.stdout + done.stderr
    assert exit_code == code, output[-4000:]
    assert allow_traceback or "Traceback" not in output, output[-4000:]
    return output


@dataclass(frozen=True)
class NightlyRun:
    """A config file and the warehouse of its jobs, both in `folder`."""

    folder: Path
    config: str

    @classmethod
    def simulate(cls, folder: Path) -> "NightlyRun":
        """Write the config and six days of simulated logs. No night is built yet."""
        nightly_run = cls._at(folder)
        nightly_run.run("simulate_logs")
        return nightly_run

    @classmethod
    def _at(cls, folder: Path) -> "NightlyRun":
        folder.mkdir(exist_ok=True)
        nightly_run = cls(folder, str(folder / "night.yaml"))
        Path(nightly_run.config).write_text(CONFIG.format(warehouse=nightly_run.warehouse, spark=json.dumps(SPARK)))
        return nightly_run

    def copy(self, folder: Path) -> "NightlyRun":
        """Copy config and warehouse to `folder`.

        A job that is done here runs again in the copy: the paths of its inputs, and so its fingerprint, differ.
        """
        other = self._at(folder)
        shutil.copytree(self.warehouse, other.warehouse)
        return other

    def run(self, job: str, *flags: str, **options: Any) -> str:
        """`run_job` with the config of this run."""
        return run_job(job, "--config", self.config, *flags, **options)

    @property
    def warehouse(self) -> Path:
        return self.folder / "my warehouse"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.warehouse}/mlflow.db"

    def manifest(self, table: str, ds: str) -> dict[str, Any]:
        return json.loads((self.warehouse / table / f"ds={ds}" / "_manifest.json").read_text())

    def current(self) -> str:
        """Id of the release that `current.json` names."""
        return json.loads((self.warehouse / "releases" / "current.json").read_text())["release_id"]

    @property
    def release(self) -> Path:
        """Folder of the current release."""
        return self.warehouse / "releases" / self.current()

    def rows(self, table: str, ds: str) -> list[dict[str, Any]]:
        return rows_of(self.warehouse / table / f"ds={ds}")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of the Parquet files under a folder, in an order that does not depend on the files."""
    rows = [row for file in sorted(folder.rglob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(rows, key=repr)
