"""One format of log lines: date, level and message; colours on a terminal only."""

import io
import logging

import pytest

from pipelines.contract.log_lines import LogHandler, counted, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, level: int = logging.INFO, *, named: bool = False) -> str:
    """What a handler writes to the stream for a record of 2024-03-07 04:12:09 UTC."""
    record = logging.LogRecord("model.training", level, "", 1, "train %s: starts", ("2024-03-06",), None)
    record.created = 1709784729.5
    LogHandler(stream, named=named).handle(record)
    return stream.getvalue()


def test_a_line_has_a_date_in_utc_a_level_and_a_message() -> None:
    assert written(io.StringIO()) == "2024-03-07 04:12:09 INFO    train 2024-03-06: starts\n"
    warning = written(io.StringIO(), logging.WARNING, named=True)
    assert warning == "2024-03-07 04:12:09 WARNING model.training: train 2024-03-06: starts\n"


def test_warnings_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in written(io.StringIO(), logging.WARNING)
    assert "\x1b[33m2024-03-07" in written(Terminal(), logging.WARNING)
    assert "\x1b[31m2024-03-07" in written(Terminal(), logging.ERROR)
    assert written(Terminal()).startswith("\r\x1b[K2024"), "removes a progress bar"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in written(Terminal(), logging.WARNING)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in written(Terminal(), logging.WARNING)


def test_a_closed_output_loses_lines_and_does_not_stop_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    assert written(Closed()) == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (754, "13 min"), (7500, "2 h 05 min")])
def test_the_precision_of_a_duration_fits_its_length(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_number_has_its_noun() -> None:
    assert [counted(1, "epoch"), counted(1200, "epoch"), counted(2, "process")] == [
        "1 epoch",
        "1,200 epochs",
        "2 processes",
    ]
