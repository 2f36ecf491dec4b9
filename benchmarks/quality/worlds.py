"""The worlds of the benchmark: a config, how the product's jobs fill the warehouse, and the nights that are asked about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality.wikispeedia import write_links
from jobs import import_grocery, import_movielens, simulate_logs
from jobs.common.config import Config, load_config
from jobs.common.runner import Context
from pipelines.storage.dates import parse_ds, shift

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "tracking.experiment=nightjar-quality"
ROLLING = ("2017-08-28", "2017-09-28", "2017-10-28", "2017-11-27")  # of the groceries


@dataclass(frozen=True)
class AskedNight:
    """A first night: it reads `bootstrap_days` of logs up to ds, and is evaluated on later days."""

    ds: str
    bootstrap_days: int
    overrides: tuple[str, ...] = ()


Fill = Callable[[Context], None]
Nights = Callable[[Context], list[AskedNight]]


@dataclass(frozen=True)
class World:
    """`folder`: the flag that names the folder of its data, if it needs one. `nights` reads the filled warehouse."""

    name: str
    config: str
    fill: Fill
    nights: Nights
    overrides: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()  # overrides of a smoke run
    folder: str | None = None
    warehouse: str | None = None  # the world whose warehouse it shares; default: its own
    simulated: bool = False

    def load(self, warehouse: Path, overrides: Sequence[str] = (), config: Path | None = None) -> Config:
        """The config of this world with overrides; `config`: another file than its own."""
        file = config or ROOT / self.config
        return load_config(str(file), [EXPERIMENT, *self.overrides, *overrides, f"warehouse={warehouse}"])


def between(first: str, last: str) -> int:
    """Days from `first` to `last`."""
    return (parse_ds(last) - parse_ds(first)).days


def logged_days(context: Context) -> list[str]:
    """The days with interactions, in order."""
    return context.warehouse.input_days(context.warehouse.path("interactions"))


def grocery_nights(context: Context, days: Sequence[str] = ROLLING) -> list[AskedNight]:
    """Rolling nights, by default four that are a month apart; each reads the year up to its day."""
    first = logged_days(context)[0]
    return [AskedNight(ds, between(first, ds) + 1) for ds in days]


def all_ratings(context: Context) -> list[AskedNight]:
    """One night after the last rating, which holds out each user's last liked film."""
    days = logged_days(context)
    return [AskedNight(days[-1], between(days[0], days[-1]) + 1)]


def cut_in_time(context: Context, share: float = 0.9, until: float = 1.0) -> list[AskedNight]:
    """The last night before `share` of all ratings were given, evaluated on the days after it, until `until` were."""
    warehouse, days = context.warehouse, logged_days(context)
    counts = warehouse.read_input(warehouse.path("interactions"), days).groupBy("ds").count().collect()
    by_day = {row["ds"]: row["count"] for row in counts}
    so_far = np.cumsum([by_day[ds] for ds in days]) / sum(by_day.values())
    cut, last = (days[max(int(np.searchsorted(so_far, part, "right")) - 1, 0)] for part in (share, until))
    later = between(cut, last)
    return [AskedNight(cut, between(days[0], cut) + 1, ("evaluation.split=next_days", f"evaluation.days={later}"))]


def link_nights(_: Context) -> list[AskedNight]:
    """One night over the two days of known links; the held-out links are on the day after."""
    return [AskedNight("2024-01-02", 2)]


def last_simulated(context: Context) -> list[AskedNight]:
    """The night before the last simulated day, which reads all days up to it."""
    sim = context.config.simulation
    return [AskedNight(shift(sim.start, sim.days - 2), sim.days - 1)]


SMALL_SIMULATION = (
    "simulation.users=300", "simulation.items=600", "simulation.recalled=100", "simulation.coarse_kept=40",
    "simulation.fine_kept=20", "simulation.days=6", "training.bootstrap_epochs=2",
)  # fmt: skip


def simulated(name: str, *knobs: str) -> World:
    """A simulated product: conf/demo.yaml with other knobs of the simulator."""
    overrides = tuple(f"simulation.{knob}" for knob in knobs)
    fill, nights = simulate_logs.run, last_simulated
    return World(name, "conf/demo.yaml", fill, nights, overrides, SMALL_SIMULATION, simulated=True)


ONE_PASS = ("training.bootstrap_epochs=1",)
WORLDS = {
    world.name: world
    for world in (
        World("grocery", "conf/grocery.yaml", import_grocery.run, grocery_nights, smoke=ONE_PASS),
        World(
            "movielens", "conf/movielens.yaml", import_movielens.run, all_ratings, smoke=ONE_PASS, folder="movielens"
        ),
        World(
            "movielens_time", "conf/movielens.yaml", import_movielens.run, cut_in_time, smoke=ONE_PASS,
            folder="movielens", warehouse="movielens",
        ),
        World(
            "wikispeedia", "benchmarks/quality/wikispeedia.yaml", write_links, link_nights, smoke=ONE_PASS,
            folder="wikispeedia",
        ),
        simulated("head_heavy", "zipf=1.4"),
        simulated("new_items", "new_item_share=0.5"),
        simulated("drifting", "drift=0.15"),
    )
}  # fmt: skip
EASY_ONLY = "easy negatives alone"  # a variant of ours in simulated worlds
SMOKE_DAYS = 10


def nights_of(world: World, context: Context, smoke: bool) -> list[AskedNight]:
    """The nights of a world, oldest first. A smoke run has the last one; the groceries then have SMOKE_DAYS days."""
    nights = world.nights(context)
    if not smoke:
        return nights
    night = nights[-1]
    days = min(night.bootstrap_days, SMOKE_DAYS) if world.name == "grocery" else night.bootstrap_days
    return [AskedNight(night.ds, days, night.overrides)]
