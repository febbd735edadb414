"""How many latent frames a video of any length takes: whole latent frames, in whole blocks."""

from dataclasses import dataclass

from arl2.errors import GeometryError
from arl2.geometry import video_frames_of


@dataclass(frozen=True)
class FramePlan:
    """What is generated for what was asked.

    Attributes:
        asked: video frames that the caller gets.
        video_frames: video frames that are generated; the last ``video_frames - asked`` are cut off.
        latent_frames: latent frames that are generated.
    """

    asked: int
    video_frames: int
    latent_frames: int

    @property
    def note(self) -> str | None:
        """A sentence for people where more is generated than was asked."""
        if self.asked == self.video_frames:
            return None
        return (
            f"{self.asked} video frames do not fill whole blocks: {self.video_frames} are generated "
            f"({self.latent_frames} latent frames), then cut to {self.asked}."
        )


def plan_frames(
    num_frames: int, *, temporal_factor: int, block_frames: int, first_block_frames: int | None = None
) -> FramePlan:
    """The smallest number of whole blocks that holds ``num_frames`` video frames.

    Args:
        num_frames: video frames asked for, any number from 1.
        temporal_factor: video frames of a latent frame, but for the first, which is one.
        block_frames: latent frames of a block.
        first_block_frames: of the first block, where it differs.

    Raises:
        GeometryError: fewer than one video frame.
    """
    if num_frames < 1:
        raise GeometryError(f"{num_frames} video frames were asked; give 1 or more.")
    needed = 1 + -(-(num_frames - 1) // temporal_factor)
    first = block_frames if first_block_frames is None else first_block_frames
    later_blocks = max(0, -(-(needed - first) // block_frames))
    latent_frames = first + later_blocks * block_frames
    return FramePlan(num_frames, video_frames_of(0, latent_frames, temporal_factor), latent_frames)
