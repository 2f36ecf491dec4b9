"""What a night writes about itself for its page: its config, the time of its steps, and why it failed if it did.

`reports/ds=DS/night.json`. Everything else on the page comes from manifests and small tables.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from jobs.common.known_faults import explained
from jobs.common.runner import Context
from jobs.common.stopping import Stopped
from pipelines.contract.errors import NightjarError
from pipelines.storage.dates import shift
from pipelines.storage.manifest import code_version
from pipelines.storage.warehouse import Warehouse

FOLDER, RECORD, EXAMPLES, PAGE = "reports", "night.json", "examples.json", "report.html"
NIGHTS_BACK = 14  # how far back the page looks for the record of an earlier night
SECRET = re.compile(r"secret|password|token|credential|account\.key|access\.key|api_?key", re.IGNORECASE)
USER_IN_URI = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Failure:
    """Why a night stopped."""

    step: str
    error: str
    exit_code: int
    at: str  # UTC


@dataclass(frozen=True)
class NightRecord:
    """The content of night.json."""

    ds: str
    code_version: str
    config: dict[str, str]  # flat: section.key -> value as JSON
    seconds: dict[str, float] = field(default_factory=dict)  # of each step
    bootstrap_days: int = 0
    failure: Failure | None = None


def uri_of(warehouse: Warehouse, ds: str, name: str) -> str:
    """The URI of a file of a night's page."""
    return f"{warehouse.path(FOLDER, ds)}/{name}"


def read_record(warehouse: Warehouse, ds: str) -> NightRecord | None:
    """The record of a night; None if it wrote none, or an unreadable one."""
    content = read_json(warehouse, ds, RECORD)
    if not content:
        return None
    failure = content.get("failure")
    known = {
        name: content[name] for name in ("ds", "code_version", "config", "seconds", "bootstrap_days") if name in content
    }
    return NightRecord(**known, failure=Failure(**failure) if failure else None)


def read_json(warehouse: Warehouse, ds: str, name: str) -> dict[str, Any]:
    """A JSON file of a night's page; empty if it does not exist or is damaged, since every part of the page is optional."""
    uri = uri_of(warehouse, ds, name)
    if not warehouse.exists(uri):
        return {}
    try:
        return dict(json.loads(warehouse.read_text(uri)))
    except (ValueError, TypeError):
        return {}


def write_record(context: Context, seconds: dict[str, float], failure: Failure | None) -> None:
    """Write night.json. The time of a step is that of its longest run: a later run that skips it takes no time."""
    warehouse, ds = context.warehouse, context.ds
    before = read_record(warehouse, ds)
    known = before.seconds if before else {}
    longest = {name: max(known.get(name, 0.0), round(seconds.get(name, 0.0), 1)) for name in {**known, **seconds}}
    bootstrap_days = context.bootstrap_days or (before.bootstrap_days if before else 0)
    config = flat(context.config.model_dump(mode="json"))
    record = NightRecord(ds, code_version(), config, longest, bootstrap_days, failure)
    warehouse.write_text(uri_of(warehouse, ds, RECORD), json.dumps(asdict(record), indent=1))


def failure_of(step: str, error: BaseException, root: str) -> Failure:
    """The failure of a step, as the page shows it. `root`: URI of the warehouse."""
    known = explained(error, root) or error
    code = getattr(known, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    text = " ".join(str(known).split())
    if isinstance(error, KeyboardInterrupt | Stopped):
        text = "the job was stopped. Tables and releases are whole"
    elif not isinstance(known, NightjarError):
        text = f"{type(known).__name__}: {text}"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Failure(step, text[:2000], code if isinstance(code, int) else 1, now)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted names, each value as JSON. Values of secrets are hidden.

    >>> flat({"model": {"dim": 32}, "spark": {"spark.hadoop.fs.s3a.secret.key": "x"}})
    {'model.dim': '32', 'spark.spark.hadoop.fs.s3a.secret.key': '(hidden)'}
    """
    found: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{key}.")
        elif SECRET.search(key):
            found[key] = HIDDEN
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[key] = USER_IN_URI.sub("", text)
    return found


def record_before(warehouse: Warehouse, ds: str) -> NightRecord | None:
    """The record of the last night before ds that wrote one, of the last NIGHTS_BACK days."""
    for days in range(1, NIGHTS_BACK + 1):
        if record := read_record(warehouse, shift(ds, -days)):
            return record
    return None


def changes(before: NightRecord, now: NightRecord) -> list[tuple[str, str, str]]:
    """(key, value before, value now) of each setting that differs; "" where there was none."""
    old, new = before.config | {"code version": before.code_version}, now.config | {"code version": now.code_version}
    return [
        (key, old.get(key, ""), new.get(key, ""))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
