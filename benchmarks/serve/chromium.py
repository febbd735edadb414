"""A real browser on the page of ``arl2 serve``, and the server as a process that can be killed.

For ``browser.py`` beside it, and for ``tests/serving/browser``.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

INSECURE = "demo.test"  # a name that browsers do not trust, unlike 127.0.0.1: the page has no WebCodecs there
MISSING = "There is no Chromium; install it (apt-get install chromium), or say where it is with ARL2_CHROMIUM=PATH."
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Of a server that is killed on purpose: the browser itself notes what is refused, and what a server that loads answers.
REFUSED = ("WebSocket connection to", "net::ERR_CONNECTION", "net::ERR_EMPTY_RESPONSE", "status of 503")
_PIXELS = """([panel, side]) => {
  const picture = document.querySelectorAll(".panel")[panel].querySelector(".picture:not([hidden])");
  const context = new OffscreenCanvas(side, side).getContext("2d");
  context.drawImage(picture, 0, 0, side, side);
  return [...context.getImageData(0, 0, side, side).data];
}"""


def chromium_path() -> str | None:
    """Where a Chromium is, or None."""
    named = os.environ.get("ARL2_CHROMIUM")
    return named or next((found for name in _NAMES if (found := shutil.which(name))), None)


@contextmanager
def chromium(path: str) -> Iterator[Browser]:
    """A browser without a window, for which ``INSECURE`` is this machine."""
    arguments = [f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # as root there is none
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """What ``condition`` gives once it is true; ``TimeoutError`` with ``what`` otherwise."""
    end = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.03)


class Served:
    """``arl2 serve`` as a process on a port of its own, which stays the same after ``kill`` and ``start``."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder, self._options = folder, options
        self._process: subprocess.Popen[str] | None = None
        self._starts = 0
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def insecure_url(self) -> str:
        """The same for a browser that does not trust the name."""
        return f"http://{INSECURE}:{self.port}/"

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        command = [sys.executable, "-m", "arl2.cli.main", "serve", "shapes-75", "--port", str(self.port)]
        command += ["--store", str(self._folder / "store"), "--allow-host", INSECURE, *self._options]
        self._starts += 1
        said = self._folder / f"said-{self._starts}.txt"
        with said.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            self.port = until(lambda: self._port_in(said), "the server's first line", 60)
            until(self._ready, "a ready server", 60)
        except BaseException:
            self.kill()
            print(said.read_text(), file=sys.stderr)
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def _port_in(self, said: Path) -> int:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the server ended at its start: {said.read_text()}")
        _, found, rest = said.read_text().partition("http://127.0.0.1:")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        return int(digits) if found and digits and len(rest) > len(digits) else 0

    def _ready(self) -> bool:
        import httpx

        try:
            return httpx.get(self.url + "ready").status_code == 200
        except httpx.TransportError:
            return False


class Watched:
    """The page in a tab, as a person uses it; errors on its console are kept.

    Args:
        browser: of ``chromium``.
        url: of the page, perhaps with ``#STREAM``.
        keywords: of playwright's ``new_page``, such as ``viewport``.
    """

    def __init__(self, browser: Browser, url: str, **keywords: Any) -> None:
        self.page: Page = browser.new_page(**{"viewport": {"width": 1280, "height": 860}, **keywords})
        self.errors: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def part(self, name: str, panel: int | None = None) -> Locator:
        """An element by its name in page.html, of the whole page or of one player."""
        place = self.page if panel is None else self.page.locator(".panel").nth(panel)
        return place.locator(f"[data-part={name}]")

    def start(self, prompt: str, seed: int = 0) -> str:
        """Begin a stream, and wait for its first picture; its name."""
        self.part("startPrompt").fill(prompt)
        self.part("startSeed").fill(str(seed))
        self.part("start").click()
        self.shows()
        return str(self.report()["stream"])

    def report(self, panel: int = 0) -> dict[str, Any]:
        """``window.arl2`` of one player, without what it has of every picture."""
        found: dict[str, Any] = json.loads(self.page.evaluate("n => JSON.stringify(arl2.panels[n] ?? {})", panel))
        return found

    def shown(self, panel: int = 0) -> list[int]:
        """Numbers of the frames that were shown."""
        found: list[int] = self.page.evaluate("n => arl2.panels[n].shown()", panel)
        return found

    def delays(self, panel: int = 0) -> list[float]:
        """Milliseconds from the release of each frame to its picture."""
        found: list[float] = self.page.evaluate("n => arl2.panels[n].delays()", panel)
        return found

    def shows(self, more: int = 1, panel: int = 0) -> None:
        """Wait until so many more pictures were shown."""
        begun = self.report(panel).get("pictures", 0)
        until(lambda: self.report(panel).get("pictures", 0) >= begun + more, f"{more} more pictures")

    def receipt(self, action: str, state: str = "applied", panel: int = 0) -> dict[str, Any]:
        """The last receipt of such a command, once it is there."""

        def look() -> dict[str, Any] | None:
            found = [one for one in self.report(panel).get("receipts", ()) if one["action"] == action]
            return found[-1] if found and found[-1]["state"] == state else None

        found: dict[str, Any] = until(look, f"{action} {state}")
        return found

    def change(self, prompt: str, mode: str = "refresh", panel: int = 0) -> None:
        """Type another prompt, and send it."""
        self.part("modes", panel).locator(f"label:has(input[value={mode}])").click()
        self.part("promptField", panel).fill(prompt)
        self.part("promptField", panel).press("Enter")

    def pixels(self, panel: int = 0) -> np.ndarray:
        """What the player shows now, RGB, ``[64, 64, 3]``."""
        values = self.page.evaluate(_PIXELS, [panel, 64])
        return np.array(values, dtype=np.uint8).reshape(64, 64, 4)[..., :3]

    def colours(self, panel: int = 0) -> dict[str, int]:
        """Pixels of 64 x 64 that are clearly red, green or blue."""
        red, green, blue = self.pixels(panel).reshape(-1, 3).astype(int).T
        return {
            "red": int(((red > 150) & (green < 110) & (blue < 110)).sum()),
            "green": int(((green > 110) & (red < 110) & (blue < 120)).sum()),
            "blue": int(((blue > 140) & (red < 110) & (green < 130)).sum()),
        }

    def close(self) -> None:
        """Close the tab."""
        self.page.close()
