"""If `current.json` is lost, publishing is refused instead of treating the release as the first one."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.release.lost_current import refuse_lost_current
from jobs.release.store import Current, read_current, write_current
from pipelines.contract.errors import InputError
from pipelines.storage.warehouse import Warehouse

GATE = {"name": "rows", "limit": 0.5, "at_least": True, "says": ""}


def release(warehouse: Warehouse, name: str, value: float) -> None:
    uri = f"{warehouse.root}/releases/{name}"
    warehouse.write_text(f"{uri}/manifest.json", json.dumps({"release_id": name, "ds": "2024-03-02"}))
    gates = {"asked": "", "against": None, "gates": [GATE | {"value": value}]}
    warehouse.write_text(f"{uri}/gates.json", json.dumps(gates))


def test_publishing_without_current_is_refused_if_another_release_passed_its_gates(warehouse: Warehouse) -> None:
    context: Any = SimpleNamespace(warehouse=warehouse)
    refuse_lost_current(context, "new")
    release(warehouse, "refused", 0.1)
    release(warehouse, "new", 1.0)
    refuse_lost_current(context, "new")  # the same release, killed before it became current
    release(warehouse, "published", 1.0)
    with pytest.raises(InputError, match=r"current\.json is missing.*rollback published"):
        refuse_lost_current(context, "new")
    write_current(warehouse, Current("published", "2024-03-02"))
    refuse_lost_current(context, "new")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"release": 1}'])
def test_a_damaged_current_is_refused_with_the_remedy(warehouse: Warehouse, text: str) -> None:
    warehouse.write_text(f"{warehouse.root}/releases/current.json", text)
    with pytest.raises(InputError, match="is damaged"):
        read_current(warehouse)
