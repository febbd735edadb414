"""All metrics of the suite ``video``, for one video: values by name, and why one has none."""

import torch

from arl2.evaluation.metrics.appearance import STATISTICS, consistency, drift, image_statistics, subject_mask
from arl2.evaluation.metrics.own_frames import strong_changes, temporal_flickering
from arl2.evaluation.metrics.planes import planes_of
from arl2.evaluation.metrics.steadiness import (
    freezes,
    loop_period,
    midframe_smoothness,
    motion,
    moves,
    undone_flicker,
)
from arl2.evaluation.wording import counted
from arl2.video.pixels import Frames

_OF_TWO = ("temporal_flickering", "motion", "moves", "frozen_share", "longest_freeze", "background_histograms")
_OF_THREE = ("undone_flicker", "midframe_smoothness")
_DRIFTS = ("drift_colour", "drift_slope", "drift_brightness", "drift_contrast", "drift_sharpness")
# Seconds that a video must have for its drift, and video frames for a loop.
_DRIFT_SECONDS, _LOOP_FRAMES = 2.0, 24


@torch.no_grad()
def measure_video(frames: Frames, *, fps: float) -> tuple[dict[str, float], dict[str, str]]:
    """Values by metric, and for each metric without one the reason.

    Args:
        frames: RGB, at least one.
        fps: video frames a second.
    """
    planes, scale = planes_of(frames)
    count = len(planes)
    length = counted(count, "video frame")
    values = dict(zip(STATISTICS, image_statistics(planes).mean(0).tolist(), strict=True))
    excluded: dict[str, str] = {}
    if count < 2:
        excluded |= dict.fromkeys((*_OF_TWO, "subject_histograms"), "1 video frame; it takes 2")
    else:
        mask = subject_mask(planes)
        values["temporal_flickering"] = temporal_flickering(frames)
        values["motion"] = motion(planes, scale)
        values["moves"] = float(moves(planes, fps))
        share, longest = freezes(planes, strong_changes(frames))
        values["frozen_share"], values["longest_freeze"] = share, float(longest)
        for name, where in (("subject_histograms", mask), ("background_histograms", ~mask)):
            similarity = consistency(planes, where)
            if similarity is None:
                excluded[name] = "nothing moves" if name.startswith("subject") else "no background shows"
            else:
                values[name] = similarity
    if count < 3:
        excluded |= dict.fromkeys(_OF_THREE, f"{length}; it takes 3")
    else:
        values["undone_flicker"] = undone_flicker(planes)
        values["midframe_smoothness"] = midframe_smoothness(planes)
    if count < _LOOP_FRAMES:
        excluded["loops"] = f"{length}; it takes {_LOOP_FRAMES}"
    else:
        period = loop_period(planes)
        values["loops"] = float(period is not None)
        if period is not None:
            values["loop_period"] = float(period)
    if count < _DRIFT_SECONDS * fps:
        excluded |= dict.fromkeys(_DRIFTS, f"shorter than {_DRIFT_SECONDS:g} s")
    elif count < 3:
        excluded |= dict.fromkeys(_DRIFTS, f"{length}; it takes 3")
    else:
        values |= drift(planes, fps)
    return values, excluded
