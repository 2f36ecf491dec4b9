"""Find settings for your data: try models, losses and training settings on a validation tail, and write a tuned config.

Trains on days before ds and judges on the days up to ds (evaluation.split: last_positive: on the last positives that evaluate
does not hold out). Writes a copy of the config whose changed values have a comment with the figures; changes are kept only if
they are certainly better. The same command continues where it stopped: --minutes is the budget of each call.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from jobs.common.config import Config, load_config
from jobs.common.runner import Context, log, main, parser, positive
from jobs.night.preconditions import require_trainers
from jobs.night.steps import open_night
from jobs.tracking.sqlite_store import require_record
from jobs.tracking.tuning_tracker import TuningTracker
from jobs.tuning import plots
from jobs.tuning.check import Decision, decide
from jobs.tuning.plan import Planner
from jobs.tuning.search import Budget, Search
from jobs.tuning.space import TuningData, sampling_parameters, training_parameters, value_of, with_changes
from jobs.tuning.study import Study
from jobs.tuning.tail import Tail, fingerprints, plan_tail, tuning_inputs
from jobs.tuning.trials import Trials
from jobs.tuning.tuned_config import MARK, tuned_text
from pipelines.contract.errors import UsageError
from pipelines.inputs.tables import InputTables
from pipelines.night import Night
from pipelines.samples.packing import positives_in
from pipelines.storage.locks import locked
from pipelines.storage.manifest import digest
from pipelines.storage.warehouse import Warehouse

FOLDER = "tune"  # in the warehouse
# Sections that change no figure of a trial: where tables and records are, and what happens after training.
WITHOUT_EFFECT = {"warehouse", "tracking", "spark", "index", "simulation"}


def run(context: Context) -> None:
    """Run trials until the budget ends, then the final check, and write the tuned config."""
    args, started = context.args, time.monotonic()
    output = output_path(args.config, args.output, force=context.force)
    require_trainers(context)
    inputs = open_night(context, 0).inputs
    days, place = inputs.days("interactions"), f"table interactions ({inputs.uri('interactions')})"
    tail = plan_tail(days, place, context.config, context.ds, args.tail_days, args.bootstrap_days)
    name = study_name(context.config, inputs, tail)
    root = Warehouse(context.spark, f"{context.warehouse.root}/{FOLDER}")
    folder = f"{root.root}/{name}"
    with locked(root, context.ds, "tune"):
        if context.force:
            root.delete(folder)
        log.info(
            "tune %s: trains on %d days up to %s, judged by %s; study %s",
            context.ds, tail.bootstrap_days, tail.last, tail.as_text(), name,
        )  # fmt: skip
        trials = Trials(context, tail, tuning_inputs(context, tail, folder), folder)
        trials.judge({})
        tracker = TuningTracker(context.config, context.warehouse, context.ds, name)
        try:
            _tune(trials, tracker, Budget(args.minutes, args.trials, started), name, output)
        except BaseException:
            tracker.close_night("FAILED")
            raise
        tracker.close_night("FINISHED")


def _tune(trials: Trials, tracker: TuningTracker, budget: Budget, name: str, output: Path) -> None:
    config = trials.config
    data = tuning_data(trials)
    training, sampling = training_parameters(config, data), sampling_parameters(config, data)
    study = Study(trials.context.warehouse, trials.folder, name, config.seed, [*training, *sampling])
    Search(trials, study, Planner(study, config, training, sampling), tracker, budget).run()
    record = tracker.study()
    record.figure(plots.history(study.ended, trials.k), "trials")
    if figure := plots.slices(study.ended, trials.k):
        record.figure(figure, "settings")
    decision = decide(trials, study, tracker)
    text = write_config(trials, decision, output)
    record.text(text, output.name)
    named = {"before": decision.before, "after": decision.after, "gain.low": decision.low, "gain.high": decision.high}
    figures = {f"recall_at_{trials.k}.{name}": value for name, value in named.items()}
    tracker.night_metrics({"trials": float(decision.trials), "changes": float(len(decision.changed)), **figures})
    log.info(
        "tune %s: wrote %s with %d changes; its record is at %s",
        trials.tail.ds,
        output,
        len(decision.changed),
        tracker.uri,
    )


def tuning_data(trials: Trials) -> TuningData:
    """What the search space depends on besides the config."""
    context = trials.judge({}).context
    samples, night = context.warehouse.require("samples", context.ds, ""), open_night(context)
    logs = night.inputs.present("ranking_logs", night.window)
    return TuningData(positives_in(samples), trials.tail.bootstrap_days, bool(logs), _actions(trials.config, night))


def _actions(config: Config, night: Night) -> int:
    """How many of positives.actions the interactions of the bootstrap have."""
    counted = config.positives.actions
    if len(counted) == 1:
        return 1
    events = night.inputs.events("interactions", night.log_days(), check=False)
    return events.where(F.col("action").isin(list(counted))).select("action").distinct().count()


def study_name(config: Config, inputs: InputTables, tail: Tail) -> str:
    """The name of the study: ds, and a hash of everything that the figures depend on."""
    sections = {name: section for name, section in config.model_dump(mode="json").items() if name not in WITHOUT_EFFECT}
    days = [tail.last, tail.bootstrap_days, tail.days]
    return f"{tail.ds}-{digest([sections, days, fingerprints(inputs, tail)])[:8]}"


def output_path(config: str, output: str | None, *, force: bool) -> Path:
    """The file to write. Raises UsageError if it is the config itself, or a file that tune did not write."""
    source = Path(config)
    path = Path(output) if output else source.with_name(f"{source.stem}.tuned.yaml")
    if path.resolve() == source.resolve():
        raise UsageError(f"--output {path}: is the config itself, which tune never changes: name another file")
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--output {path}: is not a file in a folder that exists")
    if path.exists() and not path.read_text().startswith(MARK) and not force:
        raise UsageError(f"--output {path}: exists, and tune did not write it: name another file, or use --force")
    return path


def write_config(trials: Trials, decision: Decision, output: Path) -> str:
    """Write the tuned config, after a check that it can be read and has the wanted values. Returns its text."""
    context = trials.context
    source, overrides, changed = context.args.config, context.args.overrides, decision.changed
    text = tuned_text(
        Path(source).read_text(), changed, comments(decision, context.config), header(decision, trials.tail)
    )
    staged = output.with_name(f"{output.name}.writing")
    staged.write_text(text)
    try:
        kept = [override for override in overrides if override.partition("=")[0] not in changed]
        if load_config(str(staged), kept) != with_changes(context.config, changed):
            raise UsageError(
                f"config {source}: the tuned values cannot be written into it, perhaps because of an anchor or a --set of a "
                f"whole section. Set them yourself: {changed}"
            )
        staged.replace(output)
    finally:
        staged.unlink(missing_ok=True)
    for override in set(overrides) - set(kept):
        log.warning(
            "tune %s: leave out --set %s with %s, or it undoes what tuning changed", context.ds, override, output
        )
    return text


def header(decision: Decision, tail: Tail) -> list[str]:
    """The lines at the top of the tuned config."""
    if decision.changed:
        result = [
            f"{decision.gain}.",
            "The gain is that of all changes together, with other seeds and on users that judged no trial.",
            "Start a new model with it: jobs.nightly --bootstrap-days N.",
        ]
    elif decision.before != decision.before:
        result = ["no trial had a higher figure than the config, so no value has changed."]
    else:
        result = [f"the best setting is not certainly better, so no value has changed: {decision.gain}."]
    return [f"{decision.trials} trials, judged by {tail.as_text()}.", *result]


def comments(decision: Decision, config: Config) -> dict[str, str]:
    """Key -> the comment beside a changed value."""
    texts = {}
    for name in decision.changed:
        text = f"was {_short(value_of(config, name))}; {decision.gain} in {decision.trials} trials"
        if name in decision.reverted:
            text += f"; taken back: {decision.reverted[name]:+.4f}"
        texts[name] = text
    return texts


def _short(value: Any) -> str:
    return "null" if value is None else str(value).replace("'", "")


def _flags() -> argparse.ArgumentParser:
    flags = parser("tune", __doc__ or "")
    flags.add_argument("--minutes", type=positive, default=20, metavar="N", help="budget of this call (default: 20)")
    flags.add_argument("--trials", type=positive, metavar="N", help="largest number of trials of the study")
    flags.add_argument(
        "--tail-days", type=positive, metavar="N", help="days up to ds that judge the trials (default: evaluation.days)"
    )
    flags.add_argument(
        "--bootstrap-days", type=positive, metavar="N", help="read N days of logs up to ds (default: all of them)"
    )
    flags.add_argument(
        "--output", metavar="FILE", help="the tuned config (default: CONFIG.tuned.yaml beside the config)"
    )
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run, before_spark=require_record))
