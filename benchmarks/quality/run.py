"""Runs one world: its nights with our models in one Spark session, then the peers, each in a process of its own."""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.quality import ours, variants
from benchmarks.quality.ours import Variant
from benchmarks.quality.peers import PACKAGES, PEERS
from benchmarks.quality.store import Answer, Store
from benchmarks.quality.summary import REACHABLE
from benchmarks.quality.worlds import ROOT, AskedNight, World, nights_of
from benchmarks.support import peer_python, say
from jobs.common.config import Config
from jobs.common.runner import Context
from pipelines.session import open_session
from pipelines.storage.manifest import code_version
from pipelines.storage.warehouse import Warehouse

Run = tuple[Variant, int, Config]  # with the config of the night, whose seed is that of the tables


def run_world(world: World, store: Store, options: argparse.Namespace) -> None:
    """Answer the questions of a world with all chosen models that have not answered them yet."""
    nights = _known_nights(world, store)
    if nights is None or _missing(world, store, options, nights):
        nights = _run_ours(world, store, options)
    for peer in (name for name in options.models if name in PEERS):
        run_peer(world.name, [night.ds for night in nights], peer, store, options)


def _nights_file(world: World, store: Store) -> Path:
    return store.root / world.name / "nights.json"


def _known_nights(world: World, store: Store) -> list[AskedNight] | None:
    """The nights that an earlier run found in the warehouse."""
    path = _nights_file(world, store)
    if not path.exists():
        return None
    return [AskedNight(n["ds"], n["bootstrap_days"], tuple(n["overrides"])) for n in json.loads(path.read_text())]


def _config(
    world: World, store: Store, options: argparse.Namespace, night: AskedNight | None, variant: Variant
) -> Config:
    overrides = (*(world.smoke if options.smoke else ()), *(night.overrides if night else ()), *variant.overrides)
    return world.load(store.warehouse(world.warehouse or world.name), overrides, variant.config)


def runs_of(world: World, store: Store, options: argparse.Namespace, night: AskedNight) -> list[Run]:
    """Our runs of a night that are not in the store, or that are there with other settings."""
    question = store.question(world.name, night.ds)
    fingerprint = question.fingerprint if question else ""
    runs: list[Run] = []
    for variant in variants.of_world(world, store, options.models, options.variant):
        config = _config(world, store, options, night, variant)
        for seed in range(1, options.seeds + 1):
            stored = store.read(world.name, night.ds, variant.name, seed) if question else None
            wanted = {"config": ours.digest_of(config), "question": fingerprint}
            if stored is None or wanted != {name: stored.facts[name] for name in wanted}:
                runs.append((variant, seed, config))
    return ours.order_of(runs)


def _missing(world: World, store: Store, options: argparse.Namespace, nights: list[AskedNight]) -> bool:
    """Whether a night has no question, or a run of ours is missing."""
    chosen = [night for night in nights if not options.nights or night.ds in options.nights]
    return any(
        not store.question_file(world.name, night.ds).exists() or runs_of(world, store, options, night)
        for night in chosen
    )


def _run_ours(world: World, store: Store, options: argparse.Namespace) -> list[AskedNight]:
    """Fill the warehouse, write the questions, and run our models. Returns the nights."""
    base = _config(world, store, options, None, Variant(variants.OURS))
    settings = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in base.spark.items()
    }
    spark = open_session("nightjar-quality", settings)
    source = getattr(options, world.folder) if world.folder else None
    context = Context(base, spark, Warehouse(spark, base.warehouse), argparse.Namespace(source=source))
    if source or not world.folder:
        world.fill(context)
    nights = nights_of(world, context, argparse.Namespace(smoke=options.smoke, nights=[]))
    _nights_file(world, store).parent.mkdir(parents=True, exist_ok=True)
    _nights_file(world, store).write_text(json.dumps([asdict(night) for night in nights], indent=1))
    for night in nights:
        if not options.nights or night.ds in options.nights:
            _run_night(world, store, options, context, night)
    spark.stop()
    return nights


def _run_night(world: World, store: Store, options: argparse.Namespace, context: Context, night: AskedNight) -> None:
    base = _config(world, store, options, night, Variant(variants.OURS))
    context = Context(base, context.spark, context.warehouse, context.args, night.ds, False, night.bootstrap_days)
    question = store.question(world.name, night.ds)
    if question is None:
        ours.build_tables(context)
        question = ours.question_of(context, night)
        question.save(store.question_file(world.name, night.ds))
    if world.simulated and store.read(world.name, night.ds, REACHABLE, 1) is None:
        facts = {"question": question.fingerprint, "commit": code_version()}
        store.write(world.name, night.ds, REACHABLE, 1, Answer(ours.best_reachable(context, question), facts))
    built, default = None, ours.digest_of(base)
    for variant, seed, config in runs_of(world, store, options, night):
        same = store.read(world.name, night.ds, variants.OURS, seed) if ours.digest_of(config) == default else None
        wanted = {"config": default, "question": question.fingerprint}
        if same and variant.name != variants.OURS and wanted.items() <= same.facts.items():
            store.write(world.name, night.ds, variant.name, seed, same)
            continue
        here = Context(config, context.spark, context.warehouse, context.args, night.ds, False, night.bootstrap_days)
        if built != ours.tables_of(config):
            seconds, built = ours.build_tables(here), ours.tables_of(config)
        check = variant.name == variants.OURS and seed == 1
        answer = ours.answer(here, question, config, seed, check)
        answer.facts.update(overrides=list(variant.overrides), tables_seconds=seconds)
        store.write(world.name, night.ds, variant.name, seed, answer)
        say(f"{world.name} {night.ds}: {variant.name}, seed {seed}: {answer.facts['seconds']:.0f} s")


def run_peer(world: str, nights: list[str], peer: str, store: Store, options: argparse.Namespace) -> None:
    """Tune a peer on the past of the first night, and list items for the asked users of all nights."""
    file, minutes = PEERS[peer], options.minutes
    seeds = range(1, options.seeds + 1) if file.random else [1]
    wanted = [night for night in nights if not options.nights or night in options.nights]
    missing = [(night, seed) for night in wanted for seed in seeds if not _is_answered(store, world, night, peer, seed)]
    if not missing:
        return
    chosen = store.setting(world, peer)
    if chosen is None:
        path = store.setting_file(world, peer)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"_half-{path.name}")
        _call("tune", peer, _past(store, world, nights[0]), staging, options, "--seconds", str(60 * minutes))
        staging.rename(path)
        chosen = store.setting(world, peer)
        assert chosen is not None
        say(f"{world}: {peer} tuned in {chosen['seconds']:.0f} s, {len(chosen['tried'])} tried: {chosen['setting']}")
    for night, seed in missing:
        started, out = time.perf_counter(), store.root / world / f"_{peer}.npz"
        setting = json.dumps(chosen["setting"])
        _call("rank", peer, _past(store, world, night), out, options, "--setting", setting, "--seed", str(seed))
        question = store.question(world, night)
        assert question is not None
        with np.load(out) as arrays:
            lists = arrays["lists"]
        out.unlink()
        facts = {"setting": chosen["setting"], "seconds": time.perf_counter() - started, "commit": code_version()}
        store.write(world, night, peer, seed, Answer(lists, facts | {"question": question.fingerprint}))
        say(f"{world} {night}: {peer}, seed {seed}: {facts['seconds']:.0f} s")


def _is_answered(store: Store, world: str, night: str, peer: str, seed: int) -> bool:
    answer, question = store.read(world, night, peer, seed), store.question(world, night)
    return answer is not None and question is not None and answer.facts["question"] == question.fingerprint


def _past(store: Store, world: str, night: str) -> Path:
    """The question without its targets, as a file. Written again each time: the question may be newer."""
    question = store.question(world, night)
    assert question is not None
    path = store.root / world / night / "past.npz"
    question.without_targets().save(path)
    return path


def _call(step: str, peer: str, past: Path, out: Path, options: argparse.Namespace, *flags: str) -> None:
    """Run a step of a peer in its interpreter. Raises CalledProcessError if it fails; its errors are on stderr."""
    python: Path | str = sys.executable
    if PEERS[peer].venv:
        python = options.peer_python or peer_python(".venv-peers", *PACKAGES, f"pyarrow=={version('pyarrow')}")
    command = [str(python), "-m", "benchmarks.quality.peers.search", step, peer, str(past), str(out), *flags]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
