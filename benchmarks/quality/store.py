"""The folder of results. Each answer (world, night, model, seed) is one file, so a run can stop and continue at any point.

STORE/WORLD/warehouse                     tables of the product's jobs
STORE/WORLD/warehouse-VARIANT             tables of a variant that runs two nights
STORE/WORLD/warehouse-CHANGE              tables of the variants with a changed input table
STORE/WORLD/NIGHT/question.npz            what is asked
STORE/WORLD/NIGHT/MODEL/SEED.npz          the lists of a model, and facts about the run as JSON
STORE/WORLD/tuned/MODEL.json              the setting that a peer chose on the validation tail
STORE/WORLD/tuned.yaml                    a config that jobs.tune made for this world (optional)
"""

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.question import Question
from pipelines.storage.manifest import code_version


@dataclass(frozen=True)
class Answer:
    """The lists [B, 100] of a model, and facts: seed, seconds, setting, commit and the fingerprint of the question."""

    lists: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True)
class Store:
    """The results of all worlds under one folder."""

    root: Path

    def warehouse(self, world: str, variant: str = "") -> Path:
        """The warehouse of a world, or of one of its variants that need their own."""
        return self.root / world / ("warehouse" + (f"-{folder_of(variant)}" if variant else ""))

    def question_file(self, world: str, night: str) -> Path:
        """The file of a question."""
        return self.root / world / night / "question.npz"

    def question(self, world: str, night: str) -> Question | None:
        """The question of a night, if it was written."""
        path = self.question_file(world, night)
        return Question.load(path) if path.exists() else None

    def answer_file(self, world: str, night: str, model: str, seed: int) -> Path:
        """The file of an answer."""
        return self.root / world / night / folder_of(model) / f"{seed}.npz"

    def tuned_config(self, world: str) -> Path:
        """The config that jobs.tune made for a world."""
        return self.root / world / "tuned.yaml"

    def setting_file(self, world: str, model: str) -> Path:
        """The setting that a peer chose."""
        return self.root / world / "tuned" / f"{folder_of(model)}.json"

    def setting(self, world: str, model: str) -> dict[str, Any] | None:
        """What a peer chose and tried, if it was tuned."""
        path = self.setting_file(world, model)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, world: str, night: str, model: str, seed: int, answer: Answer) -> None:
        """Write an answer. A killed run leaves no half-written file."""
        path = self.answer_file(world, night, model, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"_half-{path.name}")
        facts = answer.facts | {"model": model, "seed": seed}
        np.savez_compressed(staging, lists=answer.lists.astype(np.int32), facts=np.array(json.dumps(facts)))
        staging.rename(path)

    def read(self, world: str, night: str, model: str, seed: int) -> Answer | None:
        """An answer, if it was written."""
        path = self.answer_file(world, night, model, seed)
        return read_answer(path) if path.exists() else None

    def worlds(self) -> list[str]:
        """The worlds that have a question."""
        return sorted({path.parent.parent.name for path in self.root.glob("*/*/question.npz")})

    def nights(self, world: str) -> list[str]:
        """The nights of a world that have a question."""
        return sorted(path.parent.name for path in (self.root / world).glob("*/question.npz"))

    def answers(self, world: str, night: str) -> dict[str, dict[int, Answer]]:
        """Model -> seed -> answer of a night."""
        answers: dict[str, dict[int, Answer]] = {}
        for path in sorted((self.root / world / night).glob("*/[0-9]*.npz")):
            answer = read_answer(path)
            answers.setdefault(answer.facts["model"], {})[answer.facts["seed"]] = answer
        return answers


@cache
def commit() -> str:
    """The commit of this code, with a plus if files differ from it; the version of the package if there is no Git."""
    run = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    name = run(["git", "rev-parse", "--short=10", "HEAD"])
    if name.returncode:
        return code_version()
    changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return name.stdout.strip() + ("+" if changed else "")


def read_answer(path: Path) -> Answer:
    """Read a file that `Store.write` or a peer wrote."""
    with np.load(path) as file:
        return Answer(file["lists"].astype(np.int64), json.loads(str(file["facts"])))


def folder_of(model: str) -> str:
    """A folder name for a model or variant.

    >>> folder_of("easy:hard 1:1")
    'easy-hard-1-1'
    """
    return re.sub(r"[^A-Za-z0-9_.=+]+", "-", model).strip("-")
