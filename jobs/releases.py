"""List releases, show one, roll back to an earlier one, or delete old ones."""

import argparse
import json
import re
import sys
from contextlib import ExitStack

from jobs.common.runner import Context, aligned, log, main, parser, positive
from jobs.night.evaluations import evaluation_of, headline_k, recalls
from jobs.night.margin import margin_in
from jobs.release.store import (
    FOLDER,
    Current,
    all_releases,
    current_release,
    find_release,
    folder_of,
    lineage_of,
    night_of,
    read_current,
    update_of,
    write_current,
)
from jobs.release.verdict import refused_by, verdict_of
from model.serving.release import SERVED, Release
from pipelines.contract.errors import InputError, UsageError
from pipelines.storage.lineage import UNKNOWN, described
from pipelines.storage.locks import LockedError, locked, locked_briefly

LEFTOVER = re.compile(r"(\d{4}-\d{2}-\d{2})(-update-\d+)?-[0-9a-f]{8}")


def run(context: Context) -> None:
    """Run the action that the first argument names."""
    args = context.args
    if args.release and args.action in ("list", "prune"):
        raise UsageError(f"releases {args.action} takes no release id, got {args.release!r}")
    if (args.keep is None) == (args.action == "prune"):
        raise UsageError("--keep N belongs to prune, and prune needs it: the number of newest releases to keep")
    {"list": list_releases, "show": show, "rollback": rollback, "prune": prune}[args.action](context)


def list_releases(context: Context) -> None:
    """Print a table of releases, newest day first."""
    k, current = headline_k(context.config.evaluation.ks), read_current(context.warehouse)
    table = [["release", "ds", "items", "dim", "index", "state", "gates", f"recall@{k}"]]
    table += [_row(context, release, current, k) for release in all_releases(context.warehouse)]
    print(aligned(table) if len(table) > 1 else f"nothing is published yet in {context.warehouse.root}/{FOLDER}")


def show(context: Context) -> None:
    """Print the manifest of a release (default: the current one), its gates, how it compares with the best baseline, and
    whether its files are unchanged.
    """
    release, current = find_release(context, context.args.release), read_current(context.warehouse)
    facts = {name: value for name, value in release.manifest.items() if name not in ("files", "schema")}
    print(json.dumps({"uri": release.uri, "state": _state(context, release, current), **facts}, indent=1))
    verdict = verdict_of(context, release.uri)
    for gate in verdict.gates if verdict else []:
        print(gate.line())
    evaluation = evaluation_of(context.at(release.manifest["ds"]), release.release_id)
    if evaluation and (margin := margin_in(evaluation.facts)):
        print(f"{'' if margin.certain else 'WARNING '}{margin.line()} ({evaluation.facts['question']})")
    faults = release.faults()
    for name, fault in faults.items():
        print(f"{name}: {fault}")
    files = release.manifest["files"]
    print(f"{len(files) - len(files.keys() & faults.keys())} of {len(files)} files as published")


def rollback(context: Context) -> None:
    """Make the named release current, or the newest one of an earlier day that passed its gates. `champion` moves with it.

    A release that was rolled back does not become current again if its night runs again. Use publish_items --force, or
    name it.
    """
    from jobs.tracking.tracker import Tracker  # imports mlflow, which takes a second; list and show do not need it

    warehouse, before = context.warehouse, read_current(context.warehouse)
    target = _target(context, before)
    with ExitStack() as locks:
        for ds in sorted({before.ds, str(target.manifest["ds"])} - {""}):
            locks.enter_context(locked(warehouse, ds, "releases"))
        target.files(*SERVED)
        # Ask MLflow first: if it does not answer, nothing has changed, and the command can be run again.
        tracker = Tracker(context.config, warehouse, target.manifest["ds"])
        version = tracker.registry.version_of(target.release_id)
        with locked_briefly(warehouse, "current", "releases"):
            if read_current(warehouse) != before:
                raise LockedError(
                    f"`current` has changed from {before.release_id} meanwhile: look again (jobs.releases list)"
                )
            if before.release_id != target.release_id:
                left = [name for name in (*before.rolled_back, before.release_id) if name and name != target.release_id]
                write_current(warehouse, Current(target.release_id, target.manifest["ds"], list(dict.fromkeys(left))))
        if version:
            tracker.registry.make_champion(version)
        else:
            log.warning("releases: %s has no model version; the alias champion does not move", target.release_id)
    log.info("releases: current is %s, was %s", target.release_id, before.release_id or "nothing")
    _warn_of_lineages(context, before, target)


def _warn_of_lineages(context: Context, before: Current, target: Release) -> None:
    """Warn after a rollback to another lineage. It is allowed, but jobs that read tables will refuse the release."""
    in_use = [one for one in all_releases(context.warehouse) if one.release_id == before.release_id]
    lineages = [lineage_of(release) for release in (*in_use, target)]
    if UNKNOWN not in lineages and len(set(lineages)) > 1:
        log.warning(
            "releases: %s goes back to the bootstrap of %s, %s to that of %s. The retriever and the server answer from it; "
            "jobs.recommend refuses it for nights of the other lineage, and the next release is not compared with it",
            target.release_id, described(lineages[-1]), before.release_id, described(lineages[0]),
        )  # fmt: skip


def prune(context: Context) -> None:
    """Delete all releases except those of the newest N nights and the current one. Their manifests are deleted first.

    Of updates within the day only the current one stays, with the night's release that it continues from.
    """
    warehouse, releases = context.warehouse, all_releases(context.warehouse)
    nights = [release.release_id for release in releases if update_of(release) is None]
    for release in (release for release in releases if release.release_id not in nights[: context.args.keep]):
        with locked(warehouse, release.manifest["ds"], "releases"):
            current = current_release(context)
            if current is None or release.release_id not in (current.release_id, night_of(context, current).release_id):
                warehouse.delete(f"{release.uri}/manifest.json")
                warehouse.delete(release.uri)
                log.info("releases: pruned %s", release.release_id)
    for name in (status.getPath().getName() for status in warehouse.children(f"{warehouse.root}/{FOLDER}")):
        if match := LEFTOVER.fullmatch(name):  # left by a prune that was killed
            with locked(warehouse, match[1], "releases"):
                if not warehouse.exists(f"{folder_of(warehouse, name)}/manifest.json"):
                    warehouse.delete(folder_of(warehouse, name))


def _target(context: Context, current: Current) -> Release:
    """The target of a rollback. Raises InputError if there is none, and UsageError for a release that was refused."""
    if context.args.release:
        named = find_release(context, context.args.release)
        refused = refused_by(context, named.uri)
        if refused and not context.force:
            raise UsageError(
                f"release {named.release_id} was refused by {', '.join(refused)}: use --force to roll back to it anyway"
            )
        return named
    for release in all_releases(context.warehouse):
        earlier = release.manifest["ds"] < current.ds and release.release_id not in current.rolled_back
        verdict = verdict_of(context, release.uri)
        if earlier and verdict is not None and verdict.refusal() is None:
            return release
    raise InputError(
        f"no release of a day before {current.ds or 'the first'} has passed its gates: `jobs.releases list` shows all "
        "releases; name one"
    )


def _row(context: Context, release: Release, current: Current, k: int) -> list[str]:
    manifest, verdict = release.manifest, verdict_of(context, release.uri)
    refused = [gate.name for gate in verdict.gates if not gate.passed] if verdict else []
    gates = (
        f"refused: {', '.join(refused)}" if refused else f"passed {len(verdict.gates)}" if verdict else "not checked"
    )
    recall = recalls(context.at(manifest["ds"]), k, release.release_id).get("two_tower")
    index = manifest["index"]
    index = " ".join([index["factory"], *([f"{index['parameter']}={index['value']}"] if index["parameter"] else [])])
    return [
        release.release_id,
        manifest["ds"],
        f"{manifest['items']:,}",
        str(manifest["dim"]),
        index,
        _state(context, release, current),
        gates,
        "-" if recall is None else f"{recall:.4f}",
    ]


def _state(context: Context, release: Release, current: Current) -> str:
    if release.release_id == current.release_id:
        return "current"
    if release.release_id in current.rolled_back:
        return "rolled back"
    return "refused" if refused_by(context, release.uri) else ""


def _flags() -> argparse.ArgumentParser:
    flags = parser("releases", __doc__ or "", with_ds=False)
    flags.add_argument("action", choices=["list", "show", "rollback", "prune"])
    flags.add_argument("release", nargs="?", metavar="ID", help="the release (show, rollback)")
    flags.add_argument("--keep", type=positive, metavar="N", help="number of newest releases to keep (prune)")
    return flags


if __name__ == "__main__":
    sys.exit(main(_flags(), run, reads_only=lambda args: args.action in ("list", "show")))
