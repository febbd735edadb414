"""Metrics on videos whose answer is known: still, moving by whole pixels, frozen, repeated, drifting."""

from itertools import pairwise

import av
import numpy as np
import pytest

from arl2.evaluation.metrics.flow import block_flow
from arl2.evaluation.metrics.planes import planes_of
from arl2.evaluation.metrics.video import measure_video
from arl2.evaluation.suites.bootstrap import estimate
from arl2.video.reading import read_video

SIDE = 64
GREY, RED, NAVY = (90, 90, 90), (220, 30, 30), (15, 20, 70)


def square(places, *, side=SIDE, size=20, colour=RED, ground=NAVY):
    """A square whose corner is at each of these places."""
    frames = np.empty((len(places), side, side, 3), np.uint8)
    frames[:] = ground
    for frame, (x, y) in zip(frames, places, strict=True):
        frame[y : y + size, x : x + size] = colour
    return frames


def moving(count=16, *, step=2, **options):
    return square([(2 + step * i, 21) for i in range(count)], **options)


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_a_still_video_is_perfectly_steady_and_frozen():
    frames = np.repeat(noise(1), 40, axis=0)
    values, excluded = measure_video(frames, fps=16)
    assert values["temporal_flickering"] == 1
    assert values["undone_flicker"] == 0
    assert values["midframe_smoothness"] == pytest.approx(1, abs=1e-6)
    assert values["motion"] == values["moves"] == values["loops"] == 0
    assert values["frozen_share"] == 1
    assert values["longest_freeze"] == 40
    assert values["background_histograms"] == pytest.approx(1, abs=1e-5)
    assert excluded == {"subject_histograms": "nothing moves"}
    assert {name: values[name] for name in values if name.startswith("drift")} == pytest.approx(
        dict.fromkeys(["drift_colour", "drift_slope", "drift_brightness", "drift_contrast", "drift_sharpness"], 0),
        abs=1e-5,
    )


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_moving_square_has_the_motion_it_has(step):
    values, _ = measure_video(moving(12, step=step), fps=16)
    assert values["motion"] == pytest.approx(step, abs=0.05)
    assert values["frozen_share"] == 0
    assert values["undone_flicker"] < 1e-6


def test_motion_counts_in_pixels_of_the_file():
    places = [(8 * i, 68) for i in range(8)]
    values, _ = measure_video(square(places, side=256, size=120), fps=16)
    assert values["motion"] == pytest.approx(8, abs=0.3)
    assert values["moves"] == 1


def test_half_a_pixel_of_a_textured_video_is_seen():
    wide = np.random.default_rng(1).integers(0, 256, (SIDE, 4 * SIDE)).astype(float)
    smooth = sum(np.roll(wide, i, axis=1) for i in range(8)) / 8  # eight quarters of a pixel
    frames = [np.rint(smooth[:, 2 * i : 2 * i + 4 * 40 : 4]) for i in range(8)]
    stack = np.repeat(np.stack(frames)[..., None], 3, axis=-1).astype(np.uint8)
    planes, _ = planes_of(stack)
    flow = block_flow(planes[:-1], planes[1:])
    assert flow[..., 0].median().item() == pytest.approx(-0.5, abs=0.1)
    assert flow[..., 1].median().item() == pytest.approx(0, abs=0.1)


def test_even_motion_is_smoother_than_stutter_and_flicker():
    even, _ = measure_video(moving(13), fps=16)
    halting = [(2 + 4 * (i // 2), 21) for i in range(13)]
    stuttering, _ = measure_video(square(halting), fps=16)
    assert even["midframe_smoothness"] > stuttering["midframe_smoothness"]
    assert stuttering["frozen_share"] == pytest.approx(0.5, abs=0.05)
    blinking = np.repeat(np.array([80, 120] * 6, np.uint8), SIDE * SIDE * 3).reshape(12, SIDE, SIDE, 3)
    values, _ = measure_video(blinking, fps=16)
    assert values["undone_flicker"] == pytest.approx(40 / 255, abs=1e-6)
    assert values["temporal_flickering"] == pytest.approx(1 - 40 / 255, abs=1e-6)


def test_flickering_is_vbenchs_formula_at_the_size_of_the_file():
    """Mean absolute difference of successive uint8 frames; scaled down first it was 0.96 here."""
    frames = np.random.default_rng(4).integers(0, 256, (5, 256, 300, 3), np.uint8)
    scores = [np.abs(a.astype(np.float32) - b.astype(np.float32)).mean() for a, b in pairwise(frames)]
    values, _ = measure_video(frames, fps=16)
    assert values["temporal_flickering"] == pytest.approx((255 - np.mean(scores)) / 255, abs=1e-6)
    assert values["temporal_flickering"] < 0.7


@pytest.mark.parametrize(("side", "at"), [(512, 203), (300, 291)])  # of 300 the last pixels fill no block
def test_a_small_object_that_moves_in_a_large_video_is_no_freeze(side, at):
    places = [(40 + min(i, 12), at) for i in range(20)]
    small = square(places, side=side, size=8, colour=(110, 110, 110), ground=GREY)
    values, _ = measure_video(small, fps=16)
    assert values["frozen_share"] == pytest.approx(7 / 19)
    assert values["longest_freeze"] == 8


def test_what_an_encoder_leaves_of_a_still_picture_is_a_freeze(tmp_path):
    """A grainy picture, 512 pixels a side, by x264: single pixels change by a few levels."""
    random = np.random.default_rng(5)
    ground = np.kron(random.integers(40, 216, (32, 32, 3)), np.ones((16, 16, 1)))
    still = np.clip(ground + random.normal(0, 6, (24, 512, 512, 3)), 0, 255).astype(np.uint8)
    still[4:] = still[4]
    path = tmp_path / "still.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 512
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "23"}
        for frame in still:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    frames = read_video(path)[8:]
    assert np.abs(np.diff(frames.astype(int), axis=0)).max() >= 2
    values, _ = measure_video(frames, fps=16)
    assert values["frozen_share"] == 1


def test_a_freeze_is_found_with_its_length():
    there = [(2 + 2 * min(i, 9), 21) for i in range(20)]
    values, _ = measure_video(square(there), fps=16)
    assert values["longest_freeze"] == 11  # frames 9 to 19
    assert values["frozen_share"] == pytest.approx(10 / 19)


def test_a_loop_is_found_with_its_period():
    once = [(2 + 3 * i, 21 + (i % 5)) for i in range(14)]
    values, _ = measure_video(square(once * 4), fps=16)
    assert values["loops"] == 1
    assert values["loop_period"] == 14
    values, _ = measure_video(moving(40, step=1), fps=16)
    assert values["loops"] == 0
    assert "loop_period" not in values
    values, _ = measure_video(noise(40), fps=16)
    assert values["loops"] == 0


def test_a_subject_that_changes_colour_or_form_is_less_consistent():
    places = [(2 + 2 * i, 21) for i in range(16)]
    same, _ = measure_video(square(places), fps=16)
    changed = square(places)
    changed[8:][(changed[8:] == RED).all(-1)] = (40, 205, 225)
    other, _ = measure_video(changed, fps=16)
    assert same["subject_histograms"] == pytest.approx(1, abs=0.01)
    assert other["subject_histograms"] < 0.9
    assert other["background_histograms"] > 0.95
    ground = square(places)
    ground[8:][(ground[8:] == NAVY).all(-1)] = (235, 215, 185)
    third, _ = measure_video(ground, fps=16)
    assert third["background_histograms"] < 0.9 < same["background_histograms"]


def test_drift_is_seen_with_its_sign():
    frames = moving(48, step=0).astype(float)
    brighter = np.clip(frames + np.arange(48)[:, None, None, None] * 2, 0, 255).astype(np.uint8)
    values, _ = measure_video(brighter, fps=16)
    assert values["drift_brightness"] == pytest.approx(2 * 36 / 255, abs=0.02)
    assert values["drift_colour"] > 0.1
    assert values["drift_slope"] > 0.01


def test_a_video_that_only_changes_at_random_does_not_drift():
    """Every frame is another picture of the same kind. A fit that held the head's own frames would find a growth."""
    slopes = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        shades = random.integers(0, 256, (48, 3))
        frames = np.broadcast_to(shades[:, None, None], (48, 16, 16, 3)).astype(np.uint8)
        slopes.append(measure_video(frames, fps=16)[0]["drift_slope"])
    found = estimate(slopes)
    assert found.low < 0 < found.high


def test_statistics_of_known_images():
    white = np.full((4, SIDE, SIDE, 3), 255, np.uint8)
    values, _ = measure_video(white, fps=16)
    assert (values["brightness"], values["contrast"], values["clipped"]) == pytest.approx((1, 0, 1), abs=1e-5)
    assert values["colourfulness"] == pytest.approx(0, abs=1e-3)
    noisy = np.clip(128 + np.random.default_rng(2).normal(0, 10, (4, 128, 128, 1)), 0, 255).astype(np.uint8)
    values, _ = measure_video(np.repeat(noisy, 3, axis=-1), fps=16)
    assert values["noise"] == pytest.approx(10, rel=0.05)
    assert values["contrast"] == pytest.approx(10 / 255, rel=0.05)


def test_short_videos_lack_what_takes_longer_ones():
    values, excluded = measure_video(noise(1), fps=16)
    assert excluded["motion"] == "1 video frame; it takes 2"
    assert excluded["undone_flicker"] == "1 video frame; it takes 3"
    assert "brightness" in values
    _, excluded = measure_video(noise(2), fps=16)
    assert set(excluded) >= {"undone_flicker", "loops", "drift_slope"}
    assert "motion" not in excluded
    values, _ = measure_video(np.repeat(noise(1)[:, :5, :7], 3, axis=0), fps=16)  # smaller than a block
    assert values["motion"] == 0
    _, excluded = measure_video(noise(2), fps=1)
    assert excluded["drift_slope"] == "2 video frames; it takes 3"
