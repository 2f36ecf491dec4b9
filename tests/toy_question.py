"""A question of the quality benchmark that is small enough to check by hand."""

import numpy as np

from benchmarks.quality.question import DAY, Question

END = 100 * DAY


def question(events: list[tuple[int, int, float]], **changes: object) -> Question:
    """A question about users 0 to 3 and items 0 to 5. `events`: user, item, days before the end."""
    ordered = sorted(events, key=lambda event: -event[2])
    user, item, before = (np.array(column) for column in zip(*ordered))
    nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    arrays: dict[str, object] = {
        "users": np.array([f"u{n}" for n in range(4)]),
        "items": np.array([f"i{n}" for n in range(6)]),
        "event_user": user,
        "event_item": item,
        "event_time": (END - before * DAY).astype(np.int64),
        "event_weight": np.ones(len(user), np.float32),
        "asked": np.arange(4),
        "targets": nothing,
        "excluded": nothing,
        "end": END,
        "days": 7,
    }
    return Question(**(arrays | changes))  # type: ignore[arg-type]


EVENTS = [(0, 0, 20.0), (0, 1, 9.0), (1, 0, 8.0), (1, 2, 3.0), (1, 0, 2.0), (2, 3, 1.0), (2, 4, 30.0)]
