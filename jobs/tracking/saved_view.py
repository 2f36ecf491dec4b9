"""The saved view of the table of nights: which columns the MLflow UI shows, and which runs.

MLflow keeps such a view in a tag of the experiment. A link with `viewStateShareKey` opens it.
"""

import json

from jobs.tracking.address import VIEW

TAG = f"mlflow.sharedViewState.{VIEW}"
NIGHT = "nightjar.night"  # the tag of the run of a night, or of an update within the day

# Columns after the name and the date of the run, and their widths in pixels. The headers are the whole names.
COLUMNS = {
    "tags.`verdict`": 185,
    "metrics.`eval/recall_at_K`": 140,
    "metrics.`eval/change_on_last_night`": 190,
    "metrics.`eval/best_baseline`": 140,
    "metrics.`samples/rows`": 115,
    "metrics.`train/loss`": 95,
    "tags.`gates`": 75,
    "tags.`release_id`": 165,
}
DURATION = {"duration": 85}  # The UI always shows it.


def saved_view(k: int) -> str:
    """The value of the tag. `k`: the cut-off of the recall that the table shows.

    The filter leaves out the runs of single steps; the description of a night links to them.
    """
    columns = {name.replace("at_K", f"at_{k}"): width for name, width in COLUMNS.items()}
    state = {
        "searchFilter": f"tags.`{NIGHT}` LIKE '%'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": list(columns),
        "columnOrder": [*columns, *DURATION],
        "columnWidths": columns | DURATION,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    return json.dumps(state, sort_keys=True)
