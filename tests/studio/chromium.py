"""A headless Chromium driven through its DevTools protocol, with the standard library only.

Messages are JSON, ended by a zero byte, over two pipes that the browser takes as its file
descriptors 3 and 4 (``--remote-debugging-pipe``), so there is no port and no web socket.

    with Browser.start(binary, profile) as browser:
        page = browser.open(path.as_uri(), width=1200, height=900, scheme="dark")
        page.evaluate("document.title")
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Browser", "Page", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # containers have none to give, and the pages are our own
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-angle=swiftshader",  # WebGL without a GPU
    "--enable-unsafe-swiftshader",
)
TIMEOUT_S = 300.0


def find_chromium() -> str | None:
    """A browser of the Chromium family, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Browser:
    """The process and its two pipes."""

    to_browser: int
    from_browser: int
    number: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    _buffer: bytes = b""

    @classmethod
    @contextmanager
    def start(cls, binary: str, profile: Path) -> Iterator[Browser]:
        """Run a browser with an empty profile; it is gone when the block is left."""
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def place() -> None:
            first = fcntl.fcntl(theirs_in, fcntl.F_DUPFD, 10)
            second = fcntl.fcntl(theirs_out, fcntl.F_DUPFD, 10)
            os.dup2(first, 3)
            os.dup2(second, 4)

        process = subprocess.Popen(
            [binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield cls(ours_out, ours_in)
        finally:
            os.close(ours_out)  # which ends it
            os.close(ours_in)
            process.terminate()
            process.wait(timeout=60)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._receive(deadline - time.monotonic())
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(seconds, 0.0))
            data = os.read(self.from_browser, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("Chromium does not answer, or has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, address: str, *, width: int, height: int, scheme: str) -> Page:
        """A new page of a size and colour scheme, on its way to ``address``."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=media)
        page.call("Page.navigate", url=address)
        return page


@dataclass
class Page:
    """One tab."""

    browser: Browser
    session: str

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this tab."""
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """The size of the window, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def evaluate(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def errors(self) -> list[str]:
        """Exceptions, console errors and failed loads so far."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            what, method = event["params"], event["method"]
            logged = method == "Log.entryAdded" and what["entry"]["level"] == "error"
            printed = method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert")
            if method == "Runtime.exceptionThrown" or logged or printed:
                found.append(json.dumps(what))
        return found

    def screenshot(self) -> np.ndarray:
        """What the window shows, [h, w, 3] bytes."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
