"""What a night does last: it records how far it got, chooses examples, writes its page, and describes itself in MLflow."""

from dataclasses import replace

from jobs.common.runner import Context, log
from jobs.morning.examples import write_examples
from jobs.morning.night_files import NightFiles
from jobs.morning.night_run import describe_night
from jobs.morning.page import local_if_possible, one_line, page, refresh_page
from jobs.morning.record import PAGE, failure_of, uri_of, write_record
from jobs.night.steps import StepsResult
from jobs.tracking.tracker import Tracker

GATE_REFUSED = 4  # exit code


def write_report(context: Context, tracker: Tracker, result: StepsResult) -> None:
    """Write the page of a night, describe the night on its MLflow run, and log the page there.

    A night that failed has a page as well. An error here is a warning: it must not hide what the night did.
    """
    failure = failure_of(result.failed or "", result.error, context.warehouse.root) if result.error else None
    is_complete = failure is None or failure.exit_code == GATE_REFUSED
    if is_complete:
        try:
            write_examples(context)
        except Exception as error:
            log.warning("report %s: the page has no new examples: %s", context.ds, one_line(error))
    try:
        local = replace(context, warehouse=local_if_possible(context))
        write_record(local, result.seconds, failure)
        text = page(local)
        uri = uri_of(local.warehouse, local.ds, PAGE)
        local.warehouse.write_text(uri, text)
        log.info("report %s: %s", context.ds, uri)
        describe_night(local, tracker, failure)
        tracker.night_text(text, PAGE)
        _describe_night_before(local)
    except Exception as error:
        log.warning("report %s: the page was not written or not logged: %s", context.ds, one_line(error))


def refresh_night(context: Context, tracker: Tracker) -> None:
    """Describe a night in MLflow and write its page again, after a job of it that ran alone. An error is a warning."""
    refresh_page(context)
    try:
        describe_night(replace(context, warehouse=local_if_possible(context)), tracker)
    except Exception as error:
        log.warning("report %s: the night is not described in MLflow: %s", context.ds, one_line(error))


def _describe_night_before(context: Context) -> None:
    """Describe the night before again: this night may have evaluated it."""
    earlier = context.at(NightFiles(context).before)
    if NightFiles(earlier).evaluated:
        describe_night(earlier, Tracker(earlier.config, earlier.warehouse, earlier.ds))
