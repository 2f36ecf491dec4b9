"""Measures retrieval quality beside tuned peers, in several worlds: docs/quality.md.

    python -m benchmarks.quality --movielens ml-latest-small --wikispeedia wikispeedia    # hours; continues where it stopped
    python -m benchmarks.quality --worlds grocery --models ours,popularity,item_cf
    python -m benchmarks.quality --worlds grocery --variant "wide: model.dim=128"           # ours under other settings
    python -m benchmarks.quality --worlds grocery --variants benchmarks/quality/ladder.yaml --group loss
    python -m benchmarks.quality --validation --variant "wide: model.dim=128"               # earlier questions, to choose by
    python -m benchmarks.quality --summarise                                              # figures of what is in the store
    python -m benchmarks.quality --smoke                                                  # figures mean nothing

Writes benchmarks/results/quality.json, its table as quality.md beside it, and prints the JSON as the last line.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.quality import variants
from benchmarks.quality.peers import PEER_VENV, PEERS
from benchmarks.quality.run import WorldRun
from benchmarks.quality.store import Store, commit
from benchmarks.quality.summary import figures_of_worlds, page_of, plain, summarise, table_of
from benchmarks.quality.validation import VALIDATION
from benchmarks.quality.worlds import ROOT, WORLDS
from benchmarks.support import say

RESULT = ROOT / "benchmarks" / "results" / "quality.json"


def names(text: str) -> list[str]:
    """A list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def flags() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [variants.OURS, variants.TUNED, *PEERS]
    parser.add_argument("--worlds", type=names, help=f"default: all of {','.join(WORLDS)}")
    parser.add_argument("--models", type=names, help=f"default: all of {','.join(models)}; with variants: ours")
    parser.add_argument("--nights", type=names, default=[], help="days; default: all nights of each world")
    parser.add_argument("--seeds", type=int, help="runs with seeds 1 to N (default: 3, smoke: 1)")
    parser.add_argument("--minutes", type=float, help="to tune each peer in each world (default: 10, smoke: 0.1)")
    parser.add_argument(
        "--tune-minutes", type=int, help="for jobs.tune in worlds without a tuned config (default: no tuning)"
    )
    parser.add_argument("--movielens", metavar="FOLDER", help="the unpacked ml-latest-small")
    parser.add_argument("--wikispeedia", metavar="FOLDER", help="the folder of links.tsv and categories.tsv")
    parser.add_argument("--variant", action="append", type=variants.parse, default=[], help="'NAME: a.b=c d.e=f'")
    parser.add_argument("--variants", type=Path, metavar="FILE", help="a YAML file: group -> name -> list of overrides")
    parser.add_argument("--group", action="append", default=[], help="only this group of --variants (repeatable)")
    parser.add_argument(
        "--store", type=Path, help="folder of results (default: warehouse-quality, -validation, -smoke)"
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter with the peers (default: makes .venv-peers)")
    parser.add_argument("--summarise", action="store_true", help="run nothing, summarise the store")
    parser.add_argument(
        "--keep", action="store_true", help="worlds that the store lacks keep their figures of the file of results"
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="ask earlier questions, with a store of their own: choose settings on them",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny worlds, one night, one seed")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help=f"default: {RESULT.relative_to(ROOT)}; validation, smoke: in the store",
    )
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, with defaults that depend on other options. Exits with 2 for names that do not exist."""
    parser = flags()
    options = parser.parse_args(argv)
    options.variant += variants.read(options.variants, options.group) if options.variants else []
    everything = [variants.OURS, variants.TUNED, *PEERS]
    by_size = sorted(WORLDS, key=lambda name: options.smoke and not WORLDS[name].simulated)
    options.worlds = options.worlds or by_size
    options.models = options.models or ([variants.OURS] if options.variant else everything)
    if options.smoke and not options.peer_python and not (ROOT / PEER_VENV).exists():
        options.models = [name for name in options.models if name not in PEERS or not PEERS[name].venv]
    for kind, chosen, known in (("world", options.worlds, list(WORLDS)), ("model", options.models, everything)):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"no {kind} is named {unknown[0]!r}; there are {', '.join(known)}")
    taken = [variant.name for variant in options.variant]
    if len(set(taken)) < len(taken) or set(taken) & set(everything):
        parser.error("variants need different names, none of which is the name of a model")
    options.seeds = options.seeds or (1 if options.smoke else 3)
    options.minutes = options.minutes or (0.1 if options.smoke else 10)
    suffix = "-validation" * options.validation + "-smoke" * options.smoke
    options.store = options.store or ROOT / f"warehouse-quality{suffix}"
    options.out = options.out or (options.store / "quality.json" if suffix else RESULT)
    return options


def left_out(options: argparse.Namespace, store: Store) -> dict[str, str]:
    """Worlds without their data: no folder was passed, and the store has no question of them."""
    missing = {}
    for name, world in WORLDS.items():
        if world.folder and not getattr(options, world.folder) and name not in store.worlds():
            missing[name] = f"needs --{world.folder} FOLDER"
    return missing


def main(argv: list[str] | None = None) -> None:
    """Run the chosen worlds, then summarise the store."""
    options = parse(argv)
    store = Store(options.store.absolute())
    missing = left_out(options, store)
    for name in [] if options.summarise else options.worlds:
        if name in missing:
            say(f"{name} is left out: it {missing[name]}")
            continue
        WorldRun((VALIDATION if options.validation else WORLDS)[name], store, options).run()
    command = shlex.join(["python", "-m", "benchmarks.quality", *(argv if argv is not None else sys.argv[1:])])
    facts = {"command": command, "commit": commit(), "seeds": options.seeds, "smoke": options.smoke}
    worlds = figures_of_worlds(store)
    kept = {n: world for n, world in earlier_worlds(options.out).items() if n not in worlds} if options.keep else {}
    missing = {name: why for name, why in missing.items() if name not in kept}
    summary = plain(facts | {"kept": sorted(kept)} | summarise(worlds | kept, missing))
    print(table_of(summary))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(page_of(summary))
    print(json.dumps({name: value for name, value in summary.items() if name != "worlds"}))


def earlier_worlds(file: Path) -> dict[str, Any]:
    """The figures of the worlds in an earlier result; none if there is no such file."""
    return json.loads(file.read_text())["worlds"] if file.exists() else {}


if __name__ == "__main__":
    main()
