"""The history of a request, ages and actions of its items become the columns that the user tower reads."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.serving.request_encoder import RequestEncoder
from model.serving.request_values import RequestError
from model.serving.vocabulary import Vocabulary
from pipelines.contract.request_fields import RequestFields
from tests.model import toy_night

ACTIONS = {"name": "history_actions", "column": "history_actions", "type": "text", "vocabulary": "action"}


def encoder_of(**settings: Any) -> RequestEncoder:
    """Requests hold a history of the items a, b and c, whose indices are 2, 3 and 4. The actions are like and buy."""
    field = {"name": "history", "kind": "history", "column": "history", "type": "text", "vocabulary": "item_id"}
    fields = RequestFields.validate_python([field | {"length": 3} | settings])
    vocabularies = {
        name: Vocabulary(pa.array(values, pa.large_string()), np.arange(2, 2 + len(values), dtype=np.int32))
        for name, values in (("item_id", ["a", "b", "c"]), ("action", ["like", "buy"]))
    }
    return RequestEncoder(fields, toy_night.schema(), vocabularies)


def test_with_leave_one_out_a_repeated_item_counts_once() -> None:
    columns, _ = encoder_of(order="leave_one_out").encode([{"history": ["a", "b", "a", "c"]}])
    assert columns["history"].tolist() == [[3, 2, 4]]


def test_ages_of_history_items_are_aligned_with_the_items() -> None:
    requests: list[dict[str, Any]] = [
        {"history": ["a", "b", "a", "c"], "history_ages": [400.9, 30, None, 0]},
        {"history": ["b"], "history_ages": [1e12]},
        {"history": ["b", "c"]},
        {},
    ]
    columns, _ = encoder_of(order="strictly_before", ages="history_ages").encode(requests)
    assert columns["history_ages"].dtype == np.int32
    assert columns["history_ages"].tolist() == [[30, -1, 0], [0, 0, 2**31 - 1], [0, -1, -1], [0, 0, 0]]
    columns, _ = encoder_of(order="leave_one_out", ages="history_ages").encode(
        [{"history": ["a", "b", "a", "c"], "history_ages": [400, 30, 20, 0]}]
    )
    assert columns["history"].tolist() == [[3, 2, 4]]
    assert columns["history_ages"].tolist() == [[30, 20, 0]]


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        ([1, 2], "'history_ages' holds 2 numbers, expected one for each of the 1 items of 'history'"),
        ([-1], "'history_ages' holds a negative number at place 0, expected seconds before the request"),
        (["1"], "'history_ages' is of type str, expected a number"),
        (7, "'history_ages' is of type int, expected a list, each of its elements a number of seconds or null"),
    ],
)
def test_wrong_ages_are_refused(ages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encoder_of(order="strictly_before", ages="history_ages").encode([{"history": ["a"], "history_ages": ages}])


def test_actions_of_history_items_are_aligned_with_the_items() -> None:
    requests: list[dict[str, Any]] = [
        {"history": ["a", "b", "a", "c"], "history_actions": ["like", "buy", None, "like"]},
        {"history": ["b"], "history_actions": ["share"]},
        {"history": ["b", "c"]},
        {"history": ["b"], "history_actions": None},
        {},
    ]
    columns, _ = encoder_of(order="strictly_before", actions=ACTIONS).encode(requests)
    assert columns["history_actions"].dtype == np.int32
    assert columns["history_actions"].tolist() == [[3, 1, 2], [0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (["like", "buy"], "'history_actions' holds 2 actions, expected one for each of the 1 items of 'history'"),
        ([3], "'history_actions' is of type int, expected a string"),
        (
            "like",
            "'history_actions' is of type str, expected a list, each of its elements the name of an action or null",
        ),
    ],
)
def test_wrong_actions_are_refused(actions: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        encoder_of(order="ahead", actions=ACTIONS).encode([{"history": ["a"], "history_actions": actions}])


def test_the_actions_are_an_unknown_field_if_the_release_does_not_list_them() -> None:
    with pytest.raises(RequestError, match="unknown field 'history_actions'; did you mean 'history_ages'"):
        encoder_of(order="ahead", ages="history_ages").encode([{"history_actions": []}])
