"""Debian's chromium without a window, over the Chrome DevTools Protocol on a pair of pipes.

Messages are JSON, each ended by a NUL byte (chromium's --remote-debugging-pipe: it reads descriptor 3, writes 4).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.support import kill_session, need

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--no-proxy-server"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "about:blank"),
)

#: Put the pipes where chromium looks for them. The first is never 4, nor the second 3: four are made, in order.
_EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp("chromium", ["chromium", *sys.argv[3:]])
"""


class Browser:
    """A browser with one tab. `complaints` has what the console, the network and the policy of the page said."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._received = b""
        self._number = 0
        self._session: str | None = None
        self._tab: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open_tab(self) -> None:
        """Open a fresh tab, close the one before, and have it tell what goes wrong.

        A tab whose clock was run on stands still afterwards, so each test has one of its own.
        """
        before, self._session = self._tab, None
        self._tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        if before is not None:
            self.call("Target.closeTarget", targetId=before)
        self._session = self.call("Target.attachToTarget", targetId=self._tab, flatten=True)["sessionId"]
        self.complaints, self.requests = [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, deadline: float = 30.0, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result. AssertionError after `deadline` seconds, or if the browser refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + deadline
        while True:
            answer = self._receive(end, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])
            self._note(answer)

    def show(self, address: str) -> None:
        """Go to an address, and do not wait for what it loads."""
        assert "errorText" not in (found := self.call("Page.navigate", url=address)), found

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives in the page, by value."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, deadline: float = 20.0) -> None:
        """Wait until an expression is true in the page. AssertionError after `deadline` seconds."""
        end = time.monotonic() + deadline
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < end, f"not within {deadline:g} s: {expression}; {self.complaints}"
            time.sleep(0.02)

    def pass_time(self, seconds: float) -> None:
        """Have the page's clock run `seconds` on, as fast as it can; requests are waited for."""
        self.call("Emulation.setVirtualTimePolicy", policy="pauseIfNetworkFetchesPending", budget=1000 * seconds)
        end = time.monotonic() + 60
        while self._note(self._receive(end, "virtual time")) != "Emulation.virtualTimeBudgetExpired":
            pass

    def view(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Have a window of this size, in pixels, and prefer dark or light."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write what is seen, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _receive(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._answers], [], [], max(0.0, end - time.monotonic()))[0]:
                pytest.fail(f"chromium does not answer: {what}")
            chunk = os.read(self._answers, 65536)
            assert chunk, "chromium has ended"
            self._received += chunk
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> str:
        method, parameters = event.get("method", ""), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(str(parameters["entry"].get("text")))
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(parameters)[:1000])
        return str(method)


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Run chromium with its profile in `folder`, and end it after the block."""
    need("chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", _EXEC, str(theirs_in), str(theirs_out), f"--user-data-dir={folder}", *_OPTIONS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs_in, theirs_out),
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        browser.open_tab()
        yield browser
    finally:
        kill_session(process.pid)
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
