"""What a night does last: it records how far it got, chooses examples, and writes its page."""

from dataclasses import replace

from jobs.common.runner import Context, log
from jobs.morning.examples import write_examples
from jobs.morning.page import local_if_possible, one_line, page
from jobs.morning.record import PAGE, failure_of, uri_of, write_record
from jobs.night.steps import StepsResult
from jobs.tracking.tracker import Tracker

GATE_REFUSED = 4  # exit code


def write_report(context: Context, tracker: Tracker, result: StepsResult) -> None:
    """Write the page of a night, and log it on the night's MLflow run.

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
        tracker.night_text(text, PAGE)
    except Exception as error:
        log.warning("report %s: the page was not written or not logged: %s", context.ds, one_line(error))
