"""Runs one world: its nights with our models in one Spark session, then the peers, each in a process of its own."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import changed_inputs, ours, variants
from benchmarks.quality.ours import TRUTHS, Variant
from benchmarks.quality.peers import PACKAGES, PEER_VENV, PEERS
from benchmarks.quality.question import Question
from benchmarks.quality.store import Answer, Store, commit
from benchmarks.quality.worlds import EXPERIMENT, ROOT, AskedNight, World, nights_of
from benchmarks.support import peer_python, say
from jobs.common.config import Config
from jobs.common.runner import Context
from pipelines.session import open_session
from pipelines.storage.locks import locked
from pipelines.storage.warehouse import Warehouse

SMOKE_ITEMS = 1000  # of EASE, whose fit takes a minute for 10,000
Run = tuple[Variant, int, Config]  # with the config of the night, whose seed is that of the tables


@dataclass(frozen=True)
class WorldRun:
    """One sitting with one world: adds to the store what the options ask for and the store lacks."""

    world: World
    store: Store
    options: argparse.Namespace

    def run(self) -> None:
        """Answer the questions with all chosen models."""
        nights = self._known_nights()
        if nights is None or self._is_incomplete(nights):
            nights = self._run_ours()
        if self._needs_tuning():
            self._tune(nights[0])
            nights = self._run_ours()
        for peer in (name for name in self.options.models if name in PEERS):
            # A smoke run starts each peer of another environment only once: its imports take longer than the rest.
            if not (self.options.smoke and PEERS[peer].venv and self.world.name != self.options.worlds[0]):
                PeerRun(self.world.name, peer, self.store, self.options).run(nights)

    @cached_property
    def _nights_file(self) -> Path:
        return self.store.root / self.world.name / "nights.json"

    def _known_nights(self) -> list[AskedNight] | None:
        """The nights that an earlier run found in the warehouse."""
        if not self._nights_file.exists():
            return None
        rows = json.loads(self._nights_file.read_text())
        return [AskedNight(row["ds"], row["bootstrap_days"], tuple(row["overrides"])) for row in rows]

    def _is_incomplete(self, nights: list[AskedNight]) -> bool:
        """Whether a night has no question, or a run of ours is missing."""
        asked = self._asked(nights, with_first=True)
        files = [self.store.question_file(self.world.name, night.ds) for night in asked]
        if self.world.simulated:
            files += [
                self.store.answer_file(self.world.name, night.ds, truth, 1) for night in asked for truth in TRUTHS
            ]
        return not all(file.exists() for file in files) or any(self.missing_runs(n) for n in self._asked(nights))

    def _needs_tuning(self) -> bool:
        chosen = variants.TUNED in self.options.models and self.options.tune_minutes
        return bool(chosen) and not self.store.tuned_config(self.world.name).exists()

    def _tune(self, first: AskedNight) -> None:
        """Tune our config on the past of the first night, as the peers are."""
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "jobs.tune", *self.tune_flags(first)], check=True, cwd=ROOT
        )

    def tune_flags(self, first: AskedNight) -> list[str]:
        """The flags of jobs.tune for the first night."""
        overrides = (EXPERIMENT, *self.world.overrides, *self._overrides(first), f"warehouse={self._warehouse}")
        return [
            "--config", str(ROOT / self.world.config), "--ds", first.ds, "--bootstrap-days", str(first.bootstrap_days),
            "--minutes", str(self.options.tune_minutes), "--output", str(self.store.tuned_config(self.world.name)),
            *(flag for override in overrides for flag in ("--set", override)),
        ]  # fmt: skip

    def _asked(self, nights: list[AskedNight], with_first: bool = False) -> list[AskedNight]:
        """The nights of --nights (default: all). `with_first`: with peers also the first night, on which they are tuned."""
        first = nights[:1] if with_first and set(self.options.models) & set(PEERS) else []
        return [n for n in nights if n in first or not self.options.nights or n.ds in self.options.nights]

    @property
    def _warehouse(self) -> Path:
        return self.store.warehouse(self.world.warehouse or self.world.name)

    def _overrides(self, night: AskedNight | None) -> tuple[str, ...]:
        """The overrides of a night, after those of a smoke run."""
        return (*(self.world.smoke if self.options.smoke else ()), *(night.overrides if night else ()))

    def config(self, night: AskedNight | None, variant: Variant) -> Config:
        """The config of a variant at a night."""
        overrides, warehouse = (*self._overrides(night), *variant.overrides), self._warehouse
        if variant.own_warehouse:  # Its state begins one day earlier than that of the others, or its inputs differ.
            changed = changed_inputs.CHANGES[variant.changed_input].table if variant.changed_input else None
            overrides += ours.inputs_of(warehouse, changed)
            warehouse = self.store.warehouse(self.world.name, variant.own_warehouse)
        return self.world.load(warehouse, overrides, variant.config)

    def missing_runs(self, night: AskedNight) -> list[Run]:
        """Our runs of a night that are not in the store, or that are there with other settings."""
        question = self.store.question(self.world.name, night.ds)
        fingerprint = question.fingerprint if question else ""
        runs: list[Run] = []
        for variant in variants.of_world(self.world, self.store, self.options.models, self.options.variant):
            config = self.config(night, variant)
            wanted = {"config": ours.digest_of(config, variant.nights), "question": fingerprint}
            for seed in range(1, self.options.seeds + 1):
                stored = self.store.read(self.world.name, night.ds, variant.name, seed)
                if stored is None or not wanted.items() <= stored.facts.items():
                    runs.append((variant, seed, config))
        return ours.order_of(runs)

    def _run_ours(self) -> list[AskedNight]:
        """Fill the warehouse, write the questions, and run our models. Returns all nights."""
        base = self.config(None, Variant(variants.OURS))
        spark = open_session("nightjar-quality", {name: _spark_value(value) for name, value in base.spark.items()})
        source = getattr(self.options, self.world.folder) if self.world.folder else None
        context = Context(base, spark, Warehouse(spark, base.warehouse), argparse.Namespace(source=source))
        if source or not self.world.folder:
            self.world.fill(context)
        nights = nights_of(self.world, context, self.options.smoke)
        self._nights_file.parent.mkdir(parents=True, exist_ok=True)
        self._nights_file.write_text(json.dumps([asdict(night) for night in nights], indent=1))
        asked = self._asked(nights)
        for night in self._asked(nights, with_first=True):
            at = _at(context, self.config(night, Variant(variants.OURS)), night)
            with locked(context.warehouse, night.ds, "quality"):
                question = self._question(at)
                if night in asked:
                    self._run_night(at, night, question, check=night == asked[0])
        spark.stop()
        return nights

    def _question(self, context: Context) -> Question:
        """The question of a night. Writes it if the store lacks it; for a simulated world also the lists of the truth."""
        name, ds = self.world.name, context.ds
        question = self.store.question(name, ds)
        if question is None:
            ours.build_tables(context)
            question = ours.question_of(context)
            question.save(self.store.question_file(name, ds))
        if self.world.simulated and any(self.store.read(name, ds, truth, 1) is None for truth in TRUTHS):
            facts = {"question": question.fingerprint, "commit": commit()}
            for truth, lists in ours.lists_of_truth(context, question).items():
                self.store.write(name, ds, truth, 1, Answer(lists, facts))
        return question

    def _run_night(self, context: Context, night: AskedNight, question: Question, check: bool) -> None:
        """Train our missing models of a night, and store their lists. `context`: with the default config.

        `check`: compare the first run of the default with jobs.evaluate.
        """
        name, ds = self.world.name, night.ds
        default, built = ours.digest_of(context.config), None
        for variant, seed, config in self.missing_runs(night):
            digest = ours.digest_of(config, variant.nights)
            same = self.store.read(name, ds, variants.OURS, seed) if digest == default else None
            wanted = {"config": default, "question": question.fingerprint}
            if same and variant.name != variants.OURS and wanted.items() <= same.facts.items():
                self.store.write(name, ds, variant.name, seed, same)  # The variant is the default.
                continue
            here, tables = _at(context, config, night), (config.warehouse, ours.tables_of(config))
            if variant.changed_input:
                changed_inputs.write(variant.changed_input, context.warehouse, here.warehouse, config)
            if variant.nights > 1:
                here = ours.after_first_night(here)
            if built != tables:
                seconds, built = ours.build_tables(here), tables
            compare = check and (variant.name, seed) == (variants.OURS, 1)
            answer = ours.answer(here, question, config, seed, compare)
            answer.facts.update(config=digest, overrides=list(variant.overrides), tables_seconds=seconds)
            self.store.write(name, ds, variant.name, seed, answer)
            say(f"{name} {ds}: {variant.name}, seed {seed}: {ours.headline(question, answer)}")


def _at(context: Context, config: Config, night: AskedNight) -> Context:
    """The context of a night under a config."""
    warehouse = Warehouse(context.spark, config.warehouse)
    return Context(config, context.spark, warehouse, context.args, night.ds, False, night.bootstrap_days)


def _spark_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class PeerRun:
    """One peer in one world."""

    world: str
    peer: str
    store: Store
    options: argparse.Namespace

    def run(self, nights: list[AskedNight]) -> None:
        """Tune the peer on the past of the first night, and list items for the asked users of all chosen nights."""
        seeds = range(1, self.options.seeds + 1) if PEERS[self.peer].random else [1]
        wanted = [night.ds for night in nights if not self.options.nights or night.ds in self.options.nights]
        missing = [(ds, seed) for ds in wanted for seed in seeds if not self._is_answered(ds, seed)]
        if not missing:
            return
        setting = self._tuned(nights[0].ds)
        for ds, seed in missing:
            answer = self._answer(ds, seed, setting)
            self.store.write(self.world, ds, self.peer, seed, answer)
            said = ours.headline(self._question(ds), answer)
            say(f"{self.world} {ds}: {self.peer}, seed {seed}: {said}")

    def _question(self, ds: str) -> Question:
        question = self.store.question(self.world, ds)
        assert question is not None, f"{self.world} {ds} has no question"
        return question

    def _is_answered(self, ds: str, seed: int) -> bool:
        answer = self.store.read(self.world, ds, self.peer, seed)
        return answer is not None and answer.facts["question"] == self._question(ds).fingerprint

    def _tuned(self, ds: str) -> dict[str, Any]:
        """The setting that the peer chose on the past of ds, now or earlier."""
        chosen = self.store.setting(self.world, self.peer)
        if chosen is None:
            path = self.store.setting_file(self.world, self.peer)
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = path.with_name(f"_half-{path.name}")
            flags = ["--seconds", str(60 * self.options.minutes)]
            if self.options.smoke:
                flags += ["--most-items", str(SMOKE_ITEMS)]
            self._call("tune", ds, staging, *flags)
            chosen = json.loads(staging.read_text()) | {"night": ds, "minutes": self.options.minutes}
            path.write_text(json.dumps(chosen, indent=1))
            staging.unlink()
            tried = len(chosen["tried"])
            say(f"{self.world}: {self.peer} tried {tried} settings in {chosen['seconds']:.0f} s: {chosen['setting']}")
        setting: dict[str, Any] = chosen["setting"]
        return setting

    def _answer(self, ds: str, seed: int, setting: dict[str, Any]) -> Answer:
        """Fit the peer on the whole past of ds."""
        started, out = time.perf_counter(), self.store.root / self.world / f"_{self.peer}.npz"
        self._call("rank", ds, out, "--setting", json.dumps(setting), "--seed", str(seed))
        with np.load(out) as arrays:
            lists = arrays["lists"].astype(np.int64)
        out.unlink()
        facts = {"setting": setting, "seconds": time.perf_counter() - started, "commit": commit()}
        return Answer(lists, facts | {"question": self._question(ds).fingerprint})

    def _call(self, step: str, ds: str, out: Path, *flags: str) -> None:
        """Run a step of the peer in its interpreter. Raises CalledProcessError if it fails; its errors are on stderr."""
        past = self.store.root / self.world / ds / "past.npz"
        self._question(ds).without_targets().save(past)
        python: Path | str = sys.executable
        if PEERS[self.peer].venv:
            packages = (*PACKAGES, f"pyarrow=={version('pyarrow')}")
            python = self.options.peer_python or peer_python(PEER_VENV, *packages)
        command = [str(python), "-m", "benchmarks.quality.peers.search", step, self.peer, str(past), str(out), *flags]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
