"""A tracking server that refuses, or is none, is one error with a remedy before the first step of a night."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.common.config import Config, Tracking
from jobs.tracking.client import TrackingError
from jobs.tracking.tracker import Tracker


class Refusing(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(b"<html>a web page</html>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("code", [200, 401, 403, 404])
def test_a_server_that_refuses_ends_a_night_before_its_first_step(uri: str, code: int) -> None:
    Refusing.code = code
    warehouse: Any = SimpleNamespace(root="file:///warehouse", update=None)
    with pytest.raises(
        TrackingError, match=rf"the server at {uri} refuses the request, or is not an MLflow server"
    ) as error:
        Tracker(Config(tracking=Tracking(uri=uri)), warehouse, "2024-03-04")
    assert "Check tracking.uri, and the user or token of MLflow" in str(error.value)
    assert "\n" not in str(error.value)
