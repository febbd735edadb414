"""How many latent frames, in whole blocks, a video of any length takes."""

from dataclasses import dataclass

from arl2.errors import GeometryError
from arl2.geometry import video_frames_of


@dataclass(frozen=True)
class FramePlan:
    """What is generated for a requested number of video frames.

    Attributes:
        requested: video frames that the caller gets.
        video_frames: video frames that are generated; the last ``video_frames - requested`` are dropped.
        latent_frames: latent frames that are generated.
    """

    requested: int
    video_frames: int
    latent_frames: int

    @property
    def note(self) -> str | None:
        """A sentence for people where more is generated than was requested."""
        if self.requested == self.video_frames:
            return None
        return (
            f"{self.requested} video frames do not fill whole blocks: {self.video_frames} are generated "
            f"({self.latent_frames} latent frames), then cut to {self.requested}."
        )


def plan_frames(
    num_frames: int, *, temporal_factor: int, block_frames: int, first_block_frames: int | None = None
) -> FramePlan:
    """The smallest number of whole blocks that holds ``num_frames`` video frames.

    Args:
        num_frames: video frames requested, any number from 1.
        temporal_factor: video frames of a latent frame; the first latent frame is one video frame.
        block_frames: latent frames of a block.
        first_block_frames: of the first block, where it differs.

    Raises:
        GeometryError: fewer than one video frame.
    """
    if num_frames < 1:
        raise GeometryError(f"Got {num_frames} video frames; give 1 or more.")
    needed = 1 + -(-(num_frames - 1) // temporal_factor)
    first = block_frames if first_block_frames is None else first_block_frames
    later_blocks = max(0, -(-(needed - first) // block_frames))
    latent_frames = first + later_blocks * block_frames
    return FramePlan(num_frames, video_frames_of(0, latent_frames, temporal_factor), latent_frames)
