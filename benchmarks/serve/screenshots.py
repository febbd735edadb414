"""The pictures of the page in the docs: ``python benchmarks/serve/screenshots.py docs`` writes them.

They are taken of the real page, with a stream that the packaged model makes meanwhile.
"""

import argparse
import io
import tempfile
from pathlib import Path

from chromium import MISSING, Served, Watched, chromium, chromium_path, until
from PIL import Image
from playwright.sync_api import Browser

_LARGEST = 300_000  # bytes
_PROMPTS = (
    "a red circle moves right on navy",
    "a yellow circle moves right on navy",
    "a green square moves right on navy",
)
_OTHER = "a red square moves right on navy"
_CLEAR = 200  # pixels of 64 x 64 of a shape that is wholly to be seen


def one_stream(browser: Browser, url: str) -> Watched:
    """A stream with a past: three prompts, and points to go back to."""
    page = Watched(browser, url, viewport={"width": 1280, "height": 880})
    page.start(_PROMPTS[0], seed=7)
    for number, prompt in enumerate(_PROMPTS[1:], 1):
        page.shows(40)
        page.change(prompt)
        until(lambda so_far=number: len(_applied(page)) == so_far, "a receipt")
    page.shows(40)
    until(lambda: page.colours()["green"] > _CLEAR, "a green square")
    return page


def _applied(page: Watched) -> list[str]:
    found = page.report()["receipts"]
    return [one["key"] for one in found if one["action"] == "prompt" and one["state"] == "applied"]


def shoot(page: Watched, path: Path) -> None:
    """Write what is to be seen."""
    page.page.mouse.move(2, 2)
    picture = Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > _LARGEST:
        raise SystemExit(f"{path} has {size:,} bytes, more than {_LARGEST:,}")
    print(f"{path}: {picture.width} x {picture.height}, {size:,} bytes")


def main() -> None:
    """Take both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    path = chromium_path()
    if path is None:
        parser.error(MISSING)
    with tempfile.TemporaryDirectory() as temporary, chromium(path) as browser:
        served = Served(Path(temporary))
        try:
            page = one_stream(browser, served.url)
            shoot(page, folder / "serve.png")
            page.page.emulate_media(color_scheme="dark")
            page.part("fork", 0).click()
            page.shows(12, panel=1)
            page.change(_OTHER, panel=1)
            page.receipt("prompt", panel=1)
            page.shows(30, panel=1)
            until(lambda: page.colours(0)["green"] > _CLEAR and page.colours(1)["red"] > _CLEAR, "both squares")
            shoot(page, folder / "serve-fork.png")
        finally:
            served.kill()


if __name__ == "__main__":
    main()
