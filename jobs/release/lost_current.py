"""Refuses to publish if `current.json` was lost, so that a release does not pass as the first one."""

from jobs.common.runner import Context
from jobs.release.store import FOLDER, all_releases, current_uri
from jobs.release.verdict import verdict_of
from pipelines.contract.errors import InputError


def refuse_lost_current(context: Context, release_id: str) -> None:
    """Raises InputError if other releases have passed their gates but `current.json` does not exist.

    Without this check the release would be compared with nothing, and would pass gates that it should not pass.
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
                f"`jobs.releases rollback {release.release_id}`, then run the same command again"
            )
