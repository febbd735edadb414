"""The page of a server that wants a key, and of one that has no room: over a host that makes blocks when it is told."""

from collections.abc import Callable

import pytest

from serve.chromium import Watched, until
from serving.web.fake_host import FakeHost
from serving.web.running import running

pytestmark = pytest.mark.browser

KEY = "correct-horse"
Watch = Callable[..., Watched]


def test_a_key_is_asked_for_and_kept_to_itself(watch: Watch) -> None:
    with running(api_key=KEY) as served:
        page = watch(served.address, expected=("status of 401",))
        until(lambda: page.part("keyDialog").is_visible(), "a question for the key")
        page.part("keyField").fill("wrong")
        page.part("keyField").press("Enter")
        until(lambda: "does not know this key" in page.part("alerts").inner_text(), "a sentence")
        until(lambda: page.part("keyDialog").is_visible(), "the question once more")
        page.part("keyField").fill(KEY)
        page.part("keyField").press("Enter")
        until(lambda: "fake" in page.part("model").inner_text(), "facts of the model")

        page.page.keyboard.press("/")
        page.page.keyboard.type("a red circle")
        page.page.keyboard.press("Enter")
        until(lambda: served.host.made, "a stream")
        (stream,) = served.host.made
        served.do(served.host.advance(stream, 3))
        page.shows(6)
        page.change("refuse", mode="cut")
        assert page.receipt("prompt", "refused")["error"] == "No such colour."
        command = served.host.made[stream].commands[-1]
        assert (command.action, command.prompt, command.mode) == ("prompt", "refuse", "cut")

        assert KEY not in page.page.url
        assert KEY not in page.page.evaluate("() => JSON.stringify([arl2.panels, document.documentElement.outerHTML])")
        page.close()


def test_a_stream_without_room_says_what_to_do(watch: Watch) -> None:
    with running(FakeHost(room=0)) as served:
        page = watch(served.address, expected=("status of 429",))
        page.part("startPrompt").fill("a red circle")
        page.part("start").click()
        until(lambda: "no memory for another stream" in page.part("alerts").inner_text(), "a sentence")
        assert "Try again in 7 s" in page.part("alerts").inner_text()
        page.close()
