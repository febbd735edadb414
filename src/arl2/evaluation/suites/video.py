"""The suite ``video``: steadiness, motion, consistency, statistics of the image, drift, loops and freezes of any video.

Definitions follow VBench where it has one that needs no learned model, or where its combination of frames can be kept.
Names of VBench stand only where its definition does.
"""

from arl2.evaluation.metrics.video import measure_video
from arl2.evaluation.suites.clips import ClipSuite
from arl2.evaluation.suites.suite import Item, Metric
from arl2.video.pixels import Frames


class VideoSuite(ClipSuite):
    """Metrics of any video, without a learned model."""

    name = "video"
    about = "steadiness, motion, consistency, statistics of the image, drift, loops and freezes, of any video"
    primary = "midframe_smoothness"
    revision = 1  # flickering and freezes of the file's own frames, not of small ones
    metrics = (
        Metric(
            "temporal_flickering",
            "1 less mean change between neighbouring frames at their own size over 255 (VBench's formula, which it "
            "applies to still scenes)",
            "high",
        ),
        Metric("undone_flicker", "mean change that the next frame undoes, over 255", "low"),
        Metric(
            "midframe_smoothness",
            "1 less the error of every second frame interpolated along block flow, over 255 (in the place of VBench's "
            "motion smoothness)",
            "high",
        ),
        Metric("motion", "pixels a video frame, mean of the 5 % of blocks that move most"),
        Metric("moves", "share of videos above VBench's thresholds of dynamic degree, by block flow", is_share=True),
        Metric(
            "subject_histograms",
            "similarity of what moves to the frame before and to the first, by colour and edge histograms (in the "
            "place of VBench's subject consistency)",
            "high",
        ),
        Metric(
            "background_histograms",
            "the same of what does not move (in the place of VBench's background consistency)",
            "high",
        ),
        Metric("brightness", "mean luma, 0 to 1"),
        Metric("contrast", "standard deviation of luma, 0 to 1"),
        Metric("colourfulness", "Hasler and Suesstrunk's measure"),
        Metric("sharpness", "variance of the Laplacian of luma"),
        Metric("noise", "standard deviation of noise in grey levels (Immerkaer)", "low"),
        Metric("clipped", "share of values at the ends of the range"),
        Metric("drift_colour", "1 less the similarity of colours of the first and the last seconds", "low"),
        Metric("drift_slope", "growth a second of the distance from the colours of the first seconds", "low"),
        Metric("drift_brightness", "last seconds less first seconds"),
        Metric("drift_contrast", "last seconds less first seconds"),
        Metric("drift_sharpness", "last seconds over first seconds, in octaves"),
        Metric("frozen_share", "share of the changes of frame that change nothing, small objects included", "low"),
        Metric("longest_freeze", "video frames of the longest still picture", "low"),
        Metric("loops", "share of videos that repeat themselves", is_share=True),
        Metric("loop_period", "video frames, of videos that do"),
    )

    def measure_clip(self, frames: Frames, item: Item, *, fps: float) -> tuple[dict[str, float], dict[str, str]]:
        return measure_video(frames, fps=fps)
