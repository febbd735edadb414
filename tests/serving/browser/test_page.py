"""The page in a real browser that trusts it: pictures come by WebCodecs."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import pytest

from serve.chromium import REFUSED, Served, Watched, until

pytestmark = pytest.mark.browser

RED, BLUE, GREEN = (f"a {colour} circle moves right on white" for colour in ("red", "blue", "green"))
Watch = Callable[..., Watched]


def clear(colours: dict[str, int], name: str) -> bool:
    """Whether one colour, and no other, is seen; a circle has about 300 of the 4,096 pixels."""
    return colours[name] > 60 and all(many < 15 for other, many in colours.items() if other != name)


def assert_no_frame_twice_or_lost(shown: list[int]) -> None:
    assert all(after == before + 1 for before, after in pairwise(shown)), shown


def test_a_stream_begins_follows_a_prompt_and_pauses(server: Served, watch: Watch) -> None:
    page = watch(server.url)
    page.start(RED)
    assert page.report()["mode"] == "WebCodecs"
    assert page.pixels().std() > 10
    until(lambda: clear(page.colours(), "red"), "a red circle")

    page.change(BLUE)
    receipt = page.receipt("prompt")
    assert page.report()["prompt"] in (RED, BLUE)
    until(lambda: clear(page.colours(), "blue"), "a blue circle")
    line = page.part("receipts", 0).locator("li").first.inner_text()
    assert BLUE in line
    assert f"from block {receipt['block']}" in line
    until(lambda: page.report()["prompt"] == BLUE, "the new prompt as the stream's")
    assert page.part("history", 0).locator("li").count() == 2

    # A refused prompt is told where the prompt is, and changes nothing.
    page.change("a purple elephant plays tennis")
    assert "elephant" in page.receipt("prompt", "refused")["error"]

    page.page.locator("body").click(position={"x": 5, "y": 5})
    page.page.keyboard.press("Space")
    page.receipt("pause")
    until(lambda: page.report()["state"] == "paused", "a pause")

    def stands_still() -> bool:
        before = page.report()["frame"]
        page.page.evaluate("() => new Promise(resolve => setTimeout(resolve, 400))")  # six frames
        return page.report()["frame"] == before

    until(stands_still, "a picture that stands still")  # a busy page has frames to catch up with
    page.page.keyboard.press("Space")
    page.receipt("play")
    page.shows(8)
    assert_no_frame_twice_or_lost(page.shown())


def test_back_to_a_point_and_two_futures_side_by_side(server: Served, watch: Watch) -> None:
    page = watch(server.url)
    page.start(RED)
    until(lambda: len(page.report()["points"]) >= 2, "two points")
    page.part("slider", 0).focus()
    page.page.keyboard.press("ArrowLeft")
    page.page.keyboard.press("Enter")
    receipt = page.receipt("rewind")
    assert receipt["to"] in page.report()["points"]
    until(lambda: receipt["block"] in page.report()["cuts"], "a cut where the stream was rewound")
    assert_no_frame_twice_or_lost(page.shown())
    assert page.part("rewind", 0).is_disabled()

    alone = page.part("stage", 0).bounding_box()
    page.part("fork", 0).click()
    page.shows(panel=1)
    first, second = page.report(0), page.report(1)
    assert second["stream"] == page.receipt("fork")["fork"]
    page.change(GREEN, panel=1)
    until(lambda: clear(page.colours(1), "green"), "a green circle in the fork")
    until(lambda: clear(page.colours(0), "red"), "the other stream as it was")
    left, right = (page.part("stage", panel).bounding_box() for panel in (0, 1))
    assert alone is not None
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]

    # The address opens both again.
    assert page.page.url.endswith(f"#{first['stream']}+{second['stream']}")
    page.part("close", 1).click()
    until(lambda: page.page.locator(".panel").count() == 1, "one player")
    single = page.part("stage", 0).bounding_box()
    assert single is not None
    assert single["width"] == pytest.approx(alone["width"])
    page.shows(4)


def test_snapshots_and_videos_are_files(server: Served, watch: Watch, tmp_path: Path) -> None:
    page = watch(server.url, expected=("status of 422",))
    first = page.start(BLUE, seed=3)
    page.shows(20)
    with page.page.expect_download() as saved:
        page.part("save", 0).click()
    snapshot = tmp_path / saved.value.suggested_filename
    saved.value.save_as(snapshot)
    assert snapshot.suffix == ".arl2"
    with page.page.expect_download() as loaded:
        page.part("download", 0).click()
    loaded.value.save_as(tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as video:
        sizes = {(frame.width, frame.height) for frame in video.decode(video=0)}
    assert sizes == {(page.report()["width"], page.report()["height"])}

    page.part("homeLink").click()
    page.part("snapshotFile").set_input_files(snapshot)
    page.shows(4)
    report = page.report()
    second = report["stream"]
    assert second != first
    assert report["prompt"] == BLUE
    until(lambda: clear(page.colours(), "blue"), "the circle of the snapshot")

    # Ending it takes two clicks, and the list does not have it any more.
    page.part("stop", 0).click()
    page.part("stop", 0).click()
    until(lambda: page.page.locator(".panel").count() == 0, "the list")
    until(lambda: page.page.locator(f'[data-stream="{first}"]').count() == 1, "the other stream in the list")
    assert page.page.locator(f'[data-stream="{second}"]').count() == 0

    # What is no snapshot is refused with a sentence.
    (tmp_path / "no.arl2").write_bytes(b"no snapshot at all")
    page.part("snapshotFile").set_input_files(tmp_path / "no.arl2")
    until(lambda: page.part("alerts").inner_text(), "a sentence")


def test_a_server_that_is_killed_is_found_again(server: Served, watch: Watch) -> None:
    page = watch(server.url, expected=REFUSED)
    other = watch(server.insecure_url, expected=REFUSED)
    page.start(RED, seed=5)
    other.start(GREEN, seed=5)
    page.shows(30)
    server.kill()
    for one in (page, other):
        until(lambda one=one: one.report()["connection"] == "lost", "a lost connection")
        until(lambda one=one: "Connection lost" in one.part("messageText", 0).inner_text(), "a sentence about it")
    before = [one.report()["frame"] for one in (page, other)]
    server.start()
    for one, colour, frame in zip((page, other), ("red", "green"), before, strict=True):
        until(lambda one=one, frame=frame: one.report()["frame"] > frame + 24, "more frames")
        assert one.report()["connection"] == "live"
        until(lambda one=one: one.part("message", 0).is_hidden(), "no message any more")
        until(lambda one=one, colour=colour: clear(one.colours(), colour), "the stream as it was")
    assert_no_frame_twice_or_lost(page.shown())
    # A video element shows as many as it can, in their order.
    shown = other.shown()
    assert other.report()["mode"] == "MediaSource"
    assert all(after > before for before, after in pairwise(shown))
    assert len(shown) > 0.1 * (shown[-1] - shown[0])


def test_a_page_that_browsers_do_not_trust_plays_by_media_source(server: Served, watch: Watch) -> None:
    page = watch(server.insecure_url)
    page.start(RED)
    assert page.report()["mode"] == "MediaSource"
    assert page.page.evaluate("() => !isSecureContext && !('VideoDecoder' in window)")
    assert page.pixels().std() > 10
    page.change(GREEN)
    page.receipt("prompt")
    until(lambda: clear(page.colours(), "green"), "a green circle")
    page.part("fork", 0).click()
    page.shows(4, panel=1)


def test_a_narrow_page_has_no_sideways_scrolling(server: Served, watch: Watch) -> None:
    page = watch(server.url, viewport={"width": 390, "height": 844})
    wide = "() => document.documentElement.scrollWidth"
    assert page.page.evaluate(wide) <= 390
    stream = page.start(RED)
    assert page.page.evaluate(wide) <= 390
    page.part("pause", 0).click()
    page.receipt("pause")
    # A stream that is paused opens paused, by its address alone.
    other = watch(server.url + f"#{stream}", viewport={"width": 390, "height": 844})
    until(lambda: other.report().get("state") == "paused", "a paused stream")
    gone = watch(server.url + "#no-such-stream")
    until(
        lambda: "not here any more" in gone.part("messageText", 0).inner_text(),
        "a sentence about a stream that is not there",
    )
