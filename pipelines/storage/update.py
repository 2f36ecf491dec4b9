"""An update within the day: which events it covers and what it builds on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """A part of a day, processed before its night: the events in (`since`, `until`], both ISO times in UTC."""

    number: int  # Counts from 1 within the day.
    since: str
    until: str
    after: int | None  # The update that this one builds on. None: last night.
    base: str  # The release of `after`.
    night: str  # The release of last night.

    @property
    def name(self) -> str:
        """The name of the update in runs and releases."""
        return f"update-{self.number}"
