"""How soon a browser shows what the server makes: ``python benchmarks/serve/browser.py``.

A Chromium without a window on the real page, over loopback, once as a page that it trusts (WebCodecs) and once as one
that it does not (MediaSource). The delay of a picture is from its release by the server to the moment at which it is
drawn on the canvas, or at which the video element presents it. ``--save NAME.json`` keeps the figures.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from chromium import MISSING, Served, Watched, chromium, chromium_path, until
from playwright.sync_api import Browser

RED, BLUE = "a red circle moves right on white", "a blue circle moves right on white"


def measure(browser: Browser, url: str, seconds: float, seed: int) -> dict[str, Any]:
    """Figures of one page; milliseconds."""
    page = Watched(browser, url)
    page.start(RED, seed=seed)
    first = page.report()
    time.sleep(seconds)  # nothing else is asked of the page meanwhile
    report, shown, delays = page.report(), page.shown(), sorted(page.delays()[16:])
    missed = shown[-1] - shown[0] + 1 - len(shown)
    page.change(BLUE)
    until(lambda: page.receipt("prompt").get("seen"), "the new prompt on the screen")
    receipt = page.receipt("prompt")
    until(lambda: page.colours()["blue"] > 60, "the new colour")
    found = {
        "mode": report["mode"],
        "first_picture": round(first["firstPicture"]),
        "delay_p50": round(delays[len(delays) // 2], 1),
        "delay_p95": round(delays[int(len(delays) * 0.95)], 1),
        "delay_max": round(delays[-1], 1),
        "pictures": len(shown),
        "not_shown": missed,
        "prompt_seen": round(receipt["seen"]),
        "block_seconds": report["figures"]["block_seconds"],
        "errors": page.errors,
    }
    page.close()
    return found


def main() -> None:
    """Print a line for each way, and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="of video that each page shows")
    parser.add_argument("--save", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    path = chromium_path()
    if path is None:
        parser.error(MISSING)
    with tempfile.TemporaryDirectory() as folder, chromium(path) as browser:
        served = Served(Path(folder))
        try:
            # A model that is warm, and a browser that has drawn before: what is measured is neither's start.
            measure(browser, served.url, 2, seed=1)
            results = [
                measure(browser, url, asked.seconds, seed=2 + n)
                for n, url in enumerate((served.url, served.insecure_url))
            ]
        finally:
            served.kill()
    for one in results:
        print(
            f"{one['mode']:12} first picture {one['first_picture']} ms, delay p50 {one['delay_p50']} p95 "
            f"{one['delay_p95']} max {one['delay_max']} ms, "
            f"{one['not_shown']} of {one['pictures']} pictures not shown, new prompt seen after {one['prompt_seen']} ms"
        )
    line = json.dumps({"load": os.getloadavg()[0], "browser": results})
    print(line)
    if asked.save:
        asked.save.write_text(line + "\n")


if __name__ == "__main__":
    main()
