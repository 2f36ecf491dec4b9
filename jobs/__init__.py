"""Entry points: one file per `spark-submit` job. No other package imports this one.

Here a job handles SIGTERM and Ctrl-C while it still imports its libraries; later jobs/common/stopping.py does.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _stop(number: int, _: FrameType | None) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    os.write(2, f"error: stopped by {name}. Tables and releases are whole: run the same command again\n".encode())
    os._exit(128 + number)


# `python -m jobs.NAME` imports this package first; spark-submit runs jobs/NAME.py. Other importers keep their handlers.
if sys.argv[0] == "-m" or Path(sys.argv[0]).resolve().parent == Path(__file__).parent:
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _stop)
