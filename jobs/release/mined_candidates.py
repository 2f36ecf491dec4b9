"""Writes table `mined_candidates`: the items that the release before ds ranks for each user of the night, without the best.

build_negatives draws hard negatives from them (`negatives.mined`). Users are queried as they were at the end of the day
before ds, so that no candidate depends on what they did on ds.
"""

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.common.runner import Context, log
from jobs.inference.embed import within_model
from jobs.inference.top_items import RankedItems, ranked_items
from jobs.night.steps import open_night
from jobs.release.release_id import release_id_at
from jobs.release.store import find_release, folder_of, lineage_of, read_current
from jobs.release.verdict import verdict_of
from model.serving.coherence import check_release
from model.serving.release import DIGEST, INDEX, ITEMS, MODEL, Release
from pipelines.contract.schema import FeatureSchema
from pipelines.night import is_done
from pipelines.queries import user_queries
from pipelines.samples.mined import TABLE
from pipelines.storage.dates import shift
from pipelines.storage.lineage import UNKNOWN
from pipelines.storage.manifest import Manifest, Recipe, digest
from pipelines.storage.warehouse import Warehouse

USERS_PER_TASK = 4096  # The tasks depend on the users only: sums of floats may depend on the rows of a batch.


def write_mined_candidates(context: Context) -> Manifest | None:
    """Write the candidates of the users of the night unless it is done. None if no earlier release can rank items."""
    warehouse, ds = context.warehouse, context.ds
    positives = warehouse.require("positives", ds, f"run build_positives for ds={ds} first")
    release = release_before(context, positives.lineage)
    if release is None:
        warehouse.remove(TABLE, ds)
        log.info(
            "build_negatives %s: negatives.mined needs the release of an earlier night of this bootstrap, and there is none: "
            "easy negatives fill the places of mined ones",
            ds,
        )
        return None
    recipe = _recipe(context, positives, release)
    if is_done(open_night(context), (TABLE,), recipe, context.force):
        return warehouse.require(TABLE, ds, "")
    ranks = context.config.negatives.mined_ranks

    def describe(staged: DataFrame, folder: str) -> dict[str, Any]:
        counted = staged.agg(F.sum(F.size("items")).alias("items")).first()
        assert counted is not None
        return {"release_id": release.release_id, "ranks": ranks, "items": int(counted["items"])}

    ranked = _ranked(context, release)
    manifest = warehouse.write(ranked, TABLE, ds, recipe, facts=describe)
    log.info(
        "build_negatives %s: release %s ranked %s items at ranks %d to %d for %s users",
        ds, release.release_id, f"{manifest.facts['items']:,}", *ranks, f"{manifest.rows:,}",
    )  # fmt: skip
    return manifest


def release_before(context: Context, lineage: str) -> Release | None:
    """The newest release of an earlier night of this lineage that passed its gates and was not rolled back.

    A night that runs again after it was published therefore takes the same release as before, not its own.
    """
    warehouse = Warehouse(context.spark, context.warehouse.root)  # An update within the day reads releases of nights.
    rolled_back, day = read_current(warehouse).rolled_back, shift(context.ds, -1)
    while (state := warehouse.manifest("user_histories", day)) and state.lineage == lineage != UNKNOWN:
        release_id = release_id_at(warehouse, day)
        uri = folder_of(warehouse, release_id) if release_id else ""
        if release_id and release_id not in rolled_back and warehouse.exists(f"{uri}/manifest.json"):
            verdict, release = verdict_of(context, uri), find_release(context, release_id)
            if verdict and not verdict.refusal() and lineage_of(release) == lineage:
                return release
        day = shift(day, -1)
    return None


def _recipe(context: Context, positives: Manifest, release: Release) -> Recipe:
    """What the candidates are made of: the release, the users of the night, and their state on the day before."""
    warehouse, config, yesterday = context.warehouse, context.config, shift(context.ds, -1)
    remedy = f"run ds={yesterday} first"
    state = {f"{t}@{yesterday}": warehouse.require(t, yesterday, remedy) for t in ("user_histories", "vocabularies")}
    tables = {"positives": positives, "item_stats": warehouse.require("item_stats", context.ds, remedy), **state}
    night = open_night(context.at(yesterday))
    snapshot = night.inputs.snapshot_at("users", yesterday, strictly_before=False)
    inputs = {name: manifest.fingerprint for name, manifest in tables.items()}
    inputs["release"] = str(release.manifest.get(DIGEST, release.release_id))
    inputs["users"] = night.inputs.fingerprint("users", [snapshot] if snapshot else [])
    config_hash = digest([config.hash_of("inputs", "features"), config.negatives.mined_ranks])
    return Recipe(config_hash, inputs, positives.lineage)


def _ranked(context: Context, release: Release) -> DataFrame:
    """user_id and items (array<int>, best first) of each user of the night. Items that are not live on ds are left out."""
    warehouse, ds, config = context.warehouse, context.ds, context.config
    users = warehouse.read("positives", ds).where("split IS NOT NULL").select("user_id").distinct()
    tasks = 1 + users.count() // USERS_PER_TASK
    queries = user_queries(open_night(context.at(shift(ds, -1))), config.features, users)
    rows = within_model(queries, FeatureSchema.model_validate(release.manifest["schema"]))
    # Check the files once on the driver; the executors read them without checks.
    check_release(release)
    (index,), files = release.files(INDEX), tuple(release.files(ITEMS))
    first, last = config.negatives.mined_ranks
    ranking = RankedItems(
        model=f"{release.uri}/{MODEL}",
        index=index,
        release_id=release.release_id,
        files=files,
        item_stats=tuple(warehouse.data_files(warehouse.path("item_stats", ds))),
        first=first,
        last=last,
    )
    return ranked_items(rows.repartition(tasks, "user_id").sortWithinPartitions("user_id"), ranking)
