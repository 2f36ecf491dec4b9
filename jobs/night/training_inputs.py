"""What a training reads: samples, item tables and last night's model, checked against each other."""

from dataclasses import dataclass

from jobs.common.config import Config
from jobs.common.runner import Context, log
from jobs.night.sample_schema import schema_of
from pipelines.contract.errors import InputError, UsageError
from pipelines.contract.schema import FeatureSchema
from pipelines.storage.dates import shift
from pipelines.storage.lineage import common_lineage, one_lineage
from pipelines.storage.manifest import Manifest, Recipe

READ = ("samples", "item_features", "item_versions", "item_stats")
HASHED = ("features", "model", "loss", "training")  # sections of the config that determine the model


@dataclass(frozen=True)
class TrainingInputs:
    """The manifests of the tables that a training reads. `before`: last night's model; None in a first night."""

    tables: dict[str, Manifest]
    before: Manifest | None
    recipe: Recipe

    @property
    def samples(self) -> Manifest:
        """The manifest of the samples."""
        return self.tables["samples"]

    @classmethod
    def require(cls, context: Context) -> "TrainingInputs":
        """Find the tables of ds. Raises InputError if one is missing, out of date, or of another lineage."""
        warehouse, ds = context.warehouse, context.ds
        remedy = f"run build_negatives for ds={ds} first"
        tables = {table: warehouse.require(table, ds, remedy) for table in READ}
        _refuse_stale(context, tables["samples"], "positives", ds, remedy)
        fingerprints = {table: manifest.fingerprint for table, manifest in tables.items()}
        before, yesterday = None, shift(ds, -1)
        if tables["samples"].facts["bootstrap_days"] == 0:
            before = warehouse.require(
                "models", yesterday, f"run train for ds={yesterday} first: nights build on each other"
            )
            _refuse_stale(context, before, "samples", yesterday, f"run train for ds={yesterday} again")
            fingerprints[f"models@{yesterday}"] = before.fingerprint
        recipe = Recipe(context.config.hash_of(*HASHED), fingerprints, _lineage(tables, before))
        return cls(tables, before, recipe)

    def schemas(self, config: Config) -> tuple[FeatureSchema, FeatureSchema]:
        """The schema of the samples, and the part of it that the model reads (without `model.leave_out`)."""
        offered = schema_of(self.samples, config)
        try:
            return offered, offered.without(config.model.leave_out)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def row_groups(self, context: Context, split: str) -> list[dict[str, object]]:
        """The row groups of a split: whole URLs, row counts, and of packed rows the number of positives."""
        folder = context.warehouse.path("samples", context.ds)
        groups = self.samples.facts["splits"].get(split, {"groups": []})["groups"]
        counts = ("rows", "positives") if self.samples.facts.get("pack") else ("rows",)
        return [{"url": f"{folder}/{group['path']}"} | {name: group.get(name) for name in counts} for group in groups]

    def positives(self, split: str) -> int:
        """Number of positives in a split."""
        groups = self.samples.facts["splits"].get(split, {"groups": []})["groups"]
        return sum(group["positives"] if self.samples.facts.get("pack") else group["rows"] for group in groups)

    def processes(self, context: Context) -> int:
        """The number of training processes. Raises UsageError if the samples have fewer row groups than that.

        An update within the day has few rows, so it uses fewer processes if it has fewer row groups.
        """
        wanted, groups = context.config.training.processes, len(self.row_groups(context, "train"))
        if groups >= wanted or not groups:
            return wanted
        if context.warehouse.update:
            log.info("train %s: %d processes, because the update has only as many row groups", context.ds, groups)
            return groups
        raise UsageError(
            f"training.processes: {wanted} processes cannot share the {groups} row groups of samples ds={context.ds} "
            f"({self.samples.facts['splits']['train']['rows']:,} rows for training): lower training.processes to {groups}, or "
            "raise samples.trainers or lower samples.row_group_rows and run build_negatives again"
        )


def _refuse_stale(context: Context, manifest: Manifest, source: str, ds: str, remedy: str) -> None:
    """InputError if the partition was made from another `source` than the present one."""
    present = context.warehouse.manifest(source, ds)
    if present is not None and present.fingerprint != manifest.inputs[source]:
        raise InputError(
            f"table {manifest.table} ds={ds} was made from an earlier {source}, which was written again since: {remedy}"
        )


def _lineage(tables: dict[str, Manifest], before: Manifest | None) -> str:
    """The lineage that the samples and last night's model share. Raises InputError if they differ."""
    ds = tables["samples"].ds
    lineage = one_lineage(
        {f"table {name} ds={ds}": manifest for name, manifest in tables.items()},
        f"run build_positives and build_negatives for ds={ds} again",
    )
    if before is None:
        return lineage
    remedy = f"run build_negatives and train for ds={before.ds} again, then train for ds={ds}"
    return common_lineage({f"table samples ds={ds}": lineage, f"table models ds={before.ds}": before.lineage}, remedy)
