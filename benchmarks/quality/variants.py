"""Variants of our model: from flags, from files like ladder.yaml, and those that belong to a world."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.quality.changed_inputs import CHANGES
from benchmarks.quality.ours import Variant
from benchmarks.quality.store import Store
from benchmarks.quality.worlds import EASY_ONLY, World

OURS, TUNED = "ours", "tuned"
TWO_NIGHTS = "nights=2"  # among the overrides of a variant: see Variant.nights
CHANGED = "changed_input="  # the same, before a name of CHANGES
EASY = (
    "negatives.coarse=0", "negatives.fine=0", "negatives.mined=0", "loss.hard_ramp=null", "loss.hard_weight=1",
    "loss.hard_temperature=null", "loss.hard_rows=own", "loss.stage_weight=0",
)  # fmt: skip


def parse(text: str) -> Variant:
    """Parse `NAME: a.b=c d.e=f`. Values with spaces are quoted as in a shell.

    >>> parse("ahead: features.history.order=ahead 'prior={beta: [0, 1]}'").overrides
    ('features.history.order=ahead', 'prior={beta: [0, 1]}')
    """
    name, _, overrides = text.partition(":")
    return _variant(name.strip(), shlex.split(overrides))


def _variant(name: str, settings: Sequence[str]) -> Variant:
    """`settings`: overrides, and perhaps nights=2 and changed_input=NAME."""
    changed = [setting.removeprefix(CHANGED) for setting in settings if setting.startswith(CHANGED)]
    if unknown := [change for change in changed if change not in CHANGES]:
        raise SystemExit(f"variant {name!r}: {CHANGED}{unknown[0]} is unknown; there are {', '.join(CHANGES)}")
    if len(changed) > 1:
        raise SystemExit(f"variant {name!r}: {CHANGED[:-1]} is given twice; a variant changes one table")
    overrides = tuple(setting for setting in settings if setting != TWO_NIGHTS and not setting.startswith(CHANGED))
    return Variant(name, overrides, None, 2 if TWO_NIGHTS in settings else 1, changed[0] if changed else None)


def read(file: Path, groups: Sequence[str] = ()) -> list[Variant]:
    """The variants of a YAML file: group -> name -> list of overrides. `groups`: only these; default: all."""
    tree = yaml.safe_load(file.read_text())
    if unknown := sorted(set(groups) - set(tree)):
        raise SystemExit(f"{file} has no group {unknown[0]!r}; it has {', '.join(tree)}")
    return [
        _variant(f"{group}: {name}", overrides)
        for group, variants in tree.items()
        if not groups or group in groups
        for name, overrides in variants.items()
    ]


def of_world(world: World, store: Store, models: Sequence[str], asked: Sequence[Variant]) -> list[Variant]:
    """Our models that a run trains: the default, the asked variants, the tuned config, and easy negatives alone.

    Only simulated worlds have what a changed input needs, so the others leave such variants out.
    """
    found = [Variant(OURS)] if OURS in models else []
    if TUNED in models and store.tuned_config(world.name).exists():
        found.append(Variant(TUNED, config=store.tuned_config(world.name)))
    if world.simulated and not asked and OURS in models:
        found.append(Variant(EASY_ONLY, EASY))
    return found + [variant for variant in asked if world.simulated or variant.changed_input is None]
