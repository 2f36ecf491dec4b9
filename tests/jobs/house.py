"""A small house: simulated logs and two nights, run once as a user runs them, for all tests that want a published night."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = "2024-03-04", "2024-03-05"
CONFIG = """
warehouse: {warehouse}
simulation: {{start: "2024-03-01", days: 6, users: 150, items: 400, requests_per_user: 1.5,
             recalled: 100, coarse_kept: 40, fine_kept: 20, exposed: 10}}
features:
  user: [{{kind: categorical, name: age}}, {{kind: multi_categorical, name: interests, max_values: 4}}]
  item: [{{kind: categorical, name: category}}, {{kind: numeric, name: price}}]
  history: {{length: 10}}
positives: {{valid_hours: 3}}
negatives: {{uniform: 2, popularity: 1, coarse: 1, fine: 1}}
samples: {{row_group_rows: 128, trainers: 2}}
model: {{tower: senet, dim: 16, hidden: [], embedding_dim: 8, history_features: [category]}}
loss: {{temperature: 0.2, self_supervision: {{weight: 0.05, items: 64}}}}
training: {{batch_size: 128, bootstrap_epochs: 4, embedding_learning_rate: 0.02}}
evaluation: {{simulated_truth: true, bootstrap_samples: 50}}
index: {{factory: "IVF16,Flat", recall_target: 0.5, recall_at: 20, sweep_queries: 60}}
spark: {{spark.sql.shuffle.partitions: 2}}
"""


def run(job: str, *flags: str, code: int = 0) -> str:
    """A job as a process of its own; its output, and an assertion on how it ended."""
    command = [sys.executable, "-m", f"jobs.{job}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-4000:]
    assert "Traceback" not in said, said[-4000:]
    return said


@dataclass(frozen=True)
class House:
    folder: Path
    config: str

    @property
    def warehouse(self) -> Path:
        return self.folder / "my warehouse"

    def manifest(self, table: str, ds: str) -> dict[str, Any]:
        return json.loads((self.warehouse / table / f"ds={ds}" / "_manifest.json").read_text())

    def current(self) -> str:
        return json.loads((self.warehouse / "releases" / "current.json").read_text())["release_id"]

    def rows(self, table: str, ds: str) -> list[dict[str, Any]]:
        files = sorted((self.warehouse / table / f"ds={ds}").rglob("*.parquet"))
        found = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        return sorted(found, key=repr)


def build(folder: Path) -> House:
    path = folder / "night.yaml"
    path.write_text(CONFIG.format(warehouse=folder / "my warehouse"))
    run("simulate_logs", "--config", str(path))
    run("nightly", "--config", str(path), "--from", FIRST, "--to", SECOND, "--bootstrap-days", "4")
    return House(folder, str(path))
