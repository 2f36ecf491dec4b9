"""A copy of the project with a small demo, in which the commands of the documents run."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.documented_commands import ROOT, adapted
from tests.jobs.job_server import JobServer

SMALL = {
    "simulation": {"users": 200, "items": 400, "requests_per_user": 1.5}
    | {"recalled": 100, "coarse_kept": 40, "fine_kept": 20, "exposed": 10},
    "samples": {"row_group_rows": 128, "trainers": 2},
    "training": {"batch_size": 128, "epochs": 2, "bootstrap_epochs": 3, "embedding_learning_rate": 0.02},
    "evaluation": {"days": 1, "ks": [10, 50], "simulated_truth": True, "bootstrap_samples": 50},
    "spark": {"spark.sql.shuffle.partitions": 2, "spark.driver.memory": "2g"},
}
SERVER = re.compile(r"\bmlflow (models serve|ui)\b")
JOB = re.compile(r"python -m jobs\.(?!report)(\w+) (.*)")  # `report` starts no Spark, and may open a browser
PORT = re.compile(r"--port (\d+)")


@dataclass
class DemoCopy:
    """`folder` holds the project and `warehouse-demo`, `saved` a copy of that warehouse. `made`: names in the folder."""

    folder: Path
    saved: Path
    made: frozenset[str]

    @classmethod
    def make(cls, folder: Path) -> "DemoCopy":
        """Copy the project, make the demo small, and run `make demo`."""
        project = folder / "project"
        left_out = shutil.ignore_patterns(
            ".*", "__pycache__", "warehouse", "warehouse-*", "mlruns", "mlartifacts", "*.egg-info"
        )
        shutil.copytree(ROOT, project, ignore=left_out)
        (project / ".venv").symlink_to(Path(sys.executable).parents[1])
        config = project / "conf" / "demo.yaml"
        tree = yaml.safe_load(config.read_text())
        tree |= {name: tree.get(name, {}) | values for name, values in SMALL.items()}
        config.write_text(yaml.safe_dump(tree))
        shutil.copy(config, project / "my.yaml")
        Shell(project).run("make demo")
        shutil.copytree(project / "warehouse-demo", folder / "saved", symlinks=True)
        return cls(project, folder / "saved", frozenset(path.name for path in project.iterdir()))

    @contextmanager
    def fresh(self) -> Iterator["Shell"]:
        """A shell in the project, with its files as `make demo` left them. Servers that it started end with it."""
        for path in self.folder.iterdir():
            if path.name not in self.made and path.is_dir():
                shutil.rmtree(path)
        shutil.rmtree(self.folder / "warehouse-demo")
        shutil.copytree(self.saved, self.folder / "warehouse-demo", symlinks=True)
        shell = Shell(self.folder)
        try:
            yield shell
        finally:
            shell.end()


@dataclass
class Shell:
    """Runs commands in `folder` and asserts that they succeed."""

    folder: Path
    environment: dict[str, str] = field(default_factory=lambda: environment())
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)  # port in the documents -> free port
    jobs: JobServer | None = None

    def run(self, text: str) -> None:
        """Run a command of the documents. A server runs until `end`; `export` holds for later commands."""
        text = adapted(text, self.folder / "warehouse-demo" / "releases")
        for port, free in self.ports.items():
            text = text.replace(f":{port}/", f":{free}/")
        if text.startswith("export "):
            name, _, value = text.removeprefix("export ").partition("=")
            self.environment[name] = value
        elif SERVER.search(text):
            self._serve(text)
        elif match := JOB.match(text):
            # One process for all jobs: Spark starts once. It ends before the warehouse is replaced.
            self.jobs = self.jobs or JobServer(self.folder)
            code, output = self.jobs.run(match[1], *shlex.split(match[2], comments=True), timeout=1800)
            assert code == 0, f"{text}\n{output[-4000:]}"
        else:
            # The stamp of the virtual environment is older than the copied files, but make must not install anything.
            text = re.sub(r"^make\b", "make -o .venv/.nightjar-installed", text)
            text = re.sub(r"^curl\b", "curl --fail", text)
            self._succeed(["bash", "-c", text], text)

    def run_python(self, code: str) -> None:
        """Run a block of Python."""
        self._succeed([sys.executable, "-c", adapted(code, self.folder / "warehouse-demo" / "releases")], code)

    def end(self) -> None:
        """Stop the servers and the process of the jobs."""
        if self.jobs:
            self.jobs.stop()
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)

    def _succeed(self, command: list[str], text: str) -> None:
        options: dict[str, Any] = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(command, timeout=1800, **options)
        assert done.returncode == 0, f"{text}\n{(done.stdout + done.stderr)[-4000:]}"

    def _serve(self, text: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            free = unused.getsockname()[1]
        if match := PORT.search(text):
            self.ports[match[1]] = free
        command = f"exec env {PORT.sub('', text)} --port {free}"
        log = self.folder / f"server-{free}.log"
        with log.open("wb") as out:
            server = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.servers.append(server)
        for _ in range(240):
            time.sleep(0.5)
            assert server.poll() is None, f"{text}\n{log.read_text()[-4000:]}"
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", free)) == 0:
                    return
        raise AssertionError(f"{text} does not answer: {log.read_text()[-4000:]}")


def environment() -> dict[str, str]:
    """The environment of a user whose shell has activated the virtual environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    return own | {"PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "BROWSER": "true"}
