"""Releases without `current.json`: the file was lost, and no release may pass as the first one."""

from jobs.common.runner import Context
from jobs.release.store import FOLDER, all_releases, current_uri
from jobs.release.verdict import verdict_of
from pipelines.contract.errors import InputError


def refuse_lost_current(context: Context, release_id: str) -> None:
    """InputError if releases other than `release_id` have passed their gates and `current.json` names none of them.

    It would be compared with nothing otherwise, and pass gates that it should not pass.
    """
    warehouse = context.warehouse
    if warehouse.exists(current_uri(warehouse)):
        return
    for release in all_releases(warehouse):  # The newest day first.
        verdict = verdict_of(context, release.uri) if release.release_id != release_id else None
        if verdict is not None and not verdict.refusal():
            raise InputError(
                f"{warehouse.root}/{FOLDER}/current.json is missing, although releases were published: the newest that "
                f"passed its gates is {release.release_id} of ds={release.manifest['ds']}. Name the one in use with "
                f"`jobs.releases rollback {release.release_id}`, then the same command goes on"
            )
