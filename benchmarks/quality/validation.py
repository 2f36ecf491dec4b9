"""The same worlds with earlier questions, to choose settings on (--validation).

No target of the benchmark is among their targets or logs: an earlier night of the groceries, ratings without the last liked
film of each user (cut in time at 80% and 88%, for 90% and 100%), other held-out links, simulations with another seed.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.quality.wikispeedia import write_links
from benchmarks.quality.worlds import WORLDS, Fill, Nights, World, cut_in_time, grocery_nights
from jobs import import_movielens
from jobs.common.runner import Context
from pipelines.datasets.movielens import LIKED_FROM

SEED = 20  # of the simulations; the benchmark has the default seed


def without_last_likes(source: Path, copy: Path) -> None:
    """Copy a folder with ratings.csv and movies.csv, with the ratings of each user before the last liked film."""
    ratings = pd.read_csv(source / "ratings.csv")
    likes = ratings[ratings["rating"] >= LIKED_FROM]
    last = ratings["userId"].map(likes.groupby("userId")["timestamp"].max())
    copy.mkdir(parents=True, exist_ok=True)
    # Of several films of one second any can be the last one, so all of them are left out.
    ratings[last.isna() | (ratings["timestamp"] < last)].to_csv(copy / "ratings.csv", index=False)
    (copy / "movies.csv").write_bytes((source / "movies.csv").read_bytes())


def import_earlier_ratings(context: Context) -> None:
    """Import the copy that `without_last_likes` makes in the folder of the warehouse."""
    copy = Path(context.config.warehouse).parent / "source"
    if not copy.exists():
        staging = copy.with_name("_half-source")
        without_last_likes(Path(context.args.source), staging)
        staging.rename(copy)
    context.args.source = str(copy)
    import_movielens.run(context)


def _earlier(world: World) -> World:
    if world.simulated:
        return replace(world, overrides=(*world.overrides, f"seed={SEED}"))
    fill, nights = CHANGES[world.name]
    return replace(world, fill=fill or world.fill, nights=nights or world.nights)


CHANGES: dict[str, tuple[Fill | None, Nights | None]] = {
    "grocery": (None, partial(grocery_nights, days=("2017-05-28", "2017-06-28", "2017-07-28"))),
    "movielens": (import_earlier_ratings, None),
    "movielens_time": (import_earlier_ratings, partial(cut_in_time, share=0.8, until=0.88)),
    "wikispeedia": (partial(write_links, validation=True), None),
}
VALIDATION = {name: _earlier(world) for name, world in WORLDS.items()}
