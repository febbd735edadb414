"""A browser and a server for each file: both are let go before tests that run event loops of their own."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from serve.chromium import MISSING, Served, Watched, chromium, chromium_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    with chromium(path) as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.kill()


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens pages; what they wrote as errors fails the test, but for what ``expected`` has a part of: the browser notes
    every answer with an error, whatever the page makes of it."""
    opened: list[tuple[Watched, tuple[str, ...]]] = []

    def open_page(url: str, *, expected: tuple[str, ...] = (), **keywords: Any) -> Watched:
        opened.append((Watched(browser, url, **keywords), expected))
        return opened[-1][0]

    yield open_page
    for page, expected in opened:
        page.close()
        assert not [one for one in page.errors if not any(text in one for text in expected)]
