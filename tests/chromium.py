"""Control a page in headless Chromium through its debugging pipe, without a driver or a package.

    python tests/chromium.py PAGE FOLDER    screenshots of the page at 390 and 1280 pixels, light and dark
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (390, 1280)


class Chromium:
    """One tab. ``events`` lists everything that the browser has reported, by method and parameters.

    with Chromium() as tab:
        tab.open(path, width=390)
        assert tab.evaluate("document.title") == "…"
    """

    def __enter__(self) -> Chromium:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._count, self._rest, self._session = 0, b"", ""
        self._folder = TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        options += ["--mute-audio", "--hide-scrollbars", f"--user-data-dir={self._folder.name}"]
        self._process = subprocess.Popen(
            # Chromium reads its commands from descriptor 3 and writes to 4.
            ["bash", "-c", f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"', "-", str(PROGRAM), *options],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *problem: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            self.events.append((answer.get("method", ""), answer.get("params", {})))
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        """Load a file in a window of the given width, and wait until it is complete."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            answer = self._read()
            self.events.append((answer.get("method", ""), answer.get("params", {})))

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, after waiting for a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page, not only the window, as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def messages(self) -> list[str]:
        """Return the console messages and errors of the page."""
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(parameters) for method, parameters in self.events if method in methods]

    def requests(self) -> list[str]:
        """Return the addresses that the page has requested, without data URLs."""
        urls = [parameters["request"]["url"] for method, parameters in self.events if method == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


def save_screenshots(tab: Chromium, page: Path, folder: Path) -> None:
    """Write a picture of the page at every width, light and dark."""
    for width in WIDTHS:
        for dark in (False, True):
            tab.open(page, width=width, dark=dark)
            tab.screenshot(folder / f"{page.stem}-{width}{'-dark' if dark else ''}.png")


if __name__ == "__main__":
    with Chromium() as browser:
        save_screenshots(browser, Path(sys.argv[1]), Path(sys.argv[2]))
