"""A headless Chromium, driven over its DevTools protocol: opens pages, waits for text, clicks and takes screenshots."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp

# MLflow opens this panel over the right third of the window on the first visit of a browser.
ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"


class Browser:
    """One tab. `browser` opens and closes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0

    def open(self, url: str, text: str, *, width: int = 1600, height: int = 900, seconds: float = 60) -> None:
        """Open a page and wait until it shows `text`."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url="about:blank")  # The UI keeps its state between pages of one document.
        self._call("Page.navigate", url=url)
        self.wait_for(text, seconds)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the page shows `text`, and then until it stops changing. Raises AssertionError if it does not.

        Closes the panel of MLflow's assistant, which covers the last columns.
        """
        deadline, before = time.monotonic() + seconds, ""
        while True:
            self.click(ASSISTANT)
            now = self.text()
            if text in now and now == before:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the page does not show {text!r}; it shows:\n{now[:3000]}")
            before = now
            time.sleep(1)

    def text(self) -> str:
        """The text of the page as a reader sees it."""
        return str(self._evaluate("document.body ? document.body.innerText : ''"))

    def click(self, selector: str) -> bool:
        """Click the first element that a CSS selector selects. Returns whether there is one."""
        found = f"document.querySelector({json.dumps(selector)})"
        clicked = bool(self._evaluate(f"{found} ? ({found}.click(), true) : false"))
        if clicked:
            time.sleep(1)
        return clicked

    def screenshot(self, path: Path, *, whole_page: bool = False, most: int = 4000) -> None:
        """Write a screenshot as PNG: of the window, or of the whole page up to `most` pixels."""
        options: dict[str, Any] = {"format": "png"}
        if whole_page:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most), "scale": 1}
            options |= {"clip": clip, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **options)["data"]))

    def _evaluate(self, expression: str) -> Any:
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]
        return result.get("value", "")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        return self._loop.run_until_complete(self._answer(self._number, method, params))

    async def _answer(self, number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self._socket.receive_json(), 60)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])


def chromium() -> str | None:
    """The command of an installed Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless browser for the block."""
    command = chromium()
    assert command, "no Chromium is installed"
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="nightjar-browser-", ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [command, *flags, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        try:
            session, tab = loop.run_until_complete(_connected(_port(process)))
            try:
                yield Browser(loop, tab)
            finally:
                loop.run_until_complete(session.close())
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            loop.close()


def _port(process: "subprocess.Popen[str]") -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(r"ws://[\d.]+:(\d+)/", line):
            return int(match[1])
    raise AssertionError("Chromium did not start")


async def _connected(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        (tab, *_) = [tab for tab in await answer.json() if tab["type"] == "page"]
    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)


@contextmanager
def mlflow_ui(store: str) -> Iterator[str]:
    """An MLflow server on a store, for the block. Yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # The server's workers are in its process group.
        server.wait(20)


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError("the MLflow server did not start")
