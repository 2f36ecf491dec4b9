"""Days as `ds` strings (YYYY-MM-DD): parsing, ranges, shifts."""

import re
from collections.abc import Sequence
from datetime import date, timedelta

from pipelines.contract.errors import UsageError


def parse_ds(text: str) -> date:
    """Parse a ds from a flag or a folder name. Raises UsageError if it is not a date in the form YYYY-MM-DD."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise UsageError(f"ds {text!r} is not a day: write it as YYYY-MM-DD, for example 2024-03-07")


def days_back(ds: str, days: int) -> list[str]:
    """The last `days` days up to and including ds, oldest first."""
    last = parse_ds(ds)
    return [(last - timedelta(days=back)).isoformat() for back in range(days - 1, -1, -1)]


def span_of(days: Sequence[str]) -> str:
    """Days in order, as text for messages.

    >>> span_of(["2024-03-01", "2024-03-02", "2024-03-04"])
    '2024-03-01 to 2024-03-04 (3 days)'
    """
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]} ({len(days)} days)"


def shift(ds: str, days: int) -> str:
    """The day `days` after ds, or before it if `days` is negative."""
    return (parse_ds(ds) + timedelta(days=days)).isoformat()
