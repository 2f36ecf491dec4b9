"""Examples of each job's command line, which `--help` prints."""

_DEMO, _DAY = "--config conf/demo.yaml", "--ds 2024-03-08"
_NIGHTS = "--from 2024-03-07 --to 2024-03-09"

# Job -> its flags, one example a line.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "simulate_logs": (_DEMO,),
    "import_movielens": ("--config conf/movielens.yaml --source ml-latest-small",),
    "import_recflow": ("--config conf/recflow.yaml --source RecFlow",),
    "import_grocery": ("--config conf/grocery.yaml",),
    "build_positives": (f"{_DEMO} --ds 2024-03-07 --bootstrap-days 7", f"{_DEMO} {_DAY}"),
    "build_negatives": (f"{_DEMO} {_DAY}",),
    "train": (f"{_DEMO} {_DAY}", f"{_DEMO} {_DAY} --force --set training.epochs=2 --set model.dim=32"),
    "evaluate": (f"{_DEMO} {_DAY}", f"{_DEMO} {_DAY} --set evaluation.days=7 --set evaluation.popularity_days=[1,7]"),
    "publish_items": (f"{_DEMO} {_DAY}", f"{_DEMO} {_DAY} --force"),
    "nightly": (
        f"{_DEMO} --ds 2024-03-07 --bootstrap-days 7",
        f"{_DEMO} {_DAY}",
        f"{_DEMO} {_NIGHTS} --bootstrap-days 7",
        f"{_DEMO} --ds 2024-03-09 --no-data",
    ),
    "incremental": (f"{_DEMO} --ds 2024-03-10", f"{_DEMO} --ds 2024-03-10 --until 2024-03-10T12:00"),
    "recommend": (
        f"{_DEMO} --ds 2024-03-09 --k 50 --exclude-seen --output top50",
        f"{_DEMO} --ds 2024-03-09 --output some --users ids.txt --unknown refuse",
    ),
    "releases": (
        f"list {_DEMO}",
        f"show {_DEMO}",
        f"rollback 2024-03-08-0a1b2c3d {_DEMO}",
        f"prune --keep 7 {_DEMO}",
    ),
    "report": (f"{_DEMO} {_NIGHTS}", f"{_DEMO} --ds 2024-03-09 --open", f"{_DEMO} {_NIGHTS} --write"),
    "tune": (f"{_DEMO} {_DAY}", f"{_DEMO} {_DAY} --minutes 60 --output tuned.yaml"),
}


def examples_of(job: str) -> str:
    """The examples of a job as text; empty if it has none."""
    lines = [f"  python -m jobs.{job} {flags}" for flags in EXAMPLES.get(job, ())]
    return "\n".join(["examples:", *lines]) if lines else ""
