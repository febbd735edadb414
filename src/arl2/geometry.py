"""Pixels, latent frames, tokens and blocks: pure integers, no tensors.

One vocabulary: a *video frame* is a picture; a *frame* is one time step of the latent; a *token* is one patch of a
frame; a *block* is the frames denoised together.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from arl2.errors import GeometryError

SinkPositions = Literal["absolute", "relative"]  # of the first frames that a window keeps
SINK_POSITIONS: tuple[str, ...] = get_args(SinkPositions)


@dataclass(frozen=True)
class TokenGrid:
    """Rows and columns of tokens in one latent frame."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.rows * self.columns


def token_grid(height: int, width: int, patch: tuple[int, int, int]) -> TokenGrid:
    """The token grid of a ``height x width`` latent under ``patch`` (frames, rows, columns).

    Raises:
        GeometryError: height or width is not a positive multiple of the patch.
    """
    _, patch_rows, patch_columns = patch
    for name, size, step in (("height", height, patch_rows), ("width", width, patch_columns)):
        if size < step or size % step:
            nearest = max(step, round(size / step) * step)
            raise GeometryError(
                f"Latent {name} {size} is not a multiple of the patch size {step}; use {nearest}, for example."
            )
    return TokenGrid(height // patch_rows, width // patch_columns)


@dataclass(frozen=True)
class FrameRange:
    """Frames ``[start, stop)`` of a stream."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def count_blocks(frames: int, block_frames: int, first_block_frames: int | None = None) -> int:
    """How many blocks ``split_blocks`` gives; arguments and errors as there. Any number of frames takes no memory."""
    first = block_frames if first_block_frames is None else first_block_frames
    if not 1 <= first <= block_frames:
        raise GeometryError(f"The first block has {first} frames; it must have 1 to {block_frames}.")
    rest = frames - first
    if rest < 0 or rest % block_frames:
        below = first + max(0, rest // block_frames) * block_frames
        choices = [str(below)] if rest < 0 else [str(below), str(below + block_frames)]
        shape = f"blocks of {block_frames}" + (f" after a first one of {first}" if first != block_frames else "")
        raise GeometryError(f"{frames} latent frames do not fit {shape}; use {' or '.join(choices)}.")
    return 1 + rest // block_frames


def split_blocks(frames: int, block_frames: int, first_block_frames: int | None = None) -> tuple[FrameRange, ...]:
    """Cut ``frames`` latent frames into blocks of ``block_frames``; the first may be shorter.

    Args:
        frames: latent frames of the whole clip.
        block_frames: frames denoised together.
        first_block_frames: size of the first block, if it differs (``independent_first_frame`` models: 1).

    Raises:
        GeometryError: the frames do not fit the blocks; the message names the nearest numbers that do.
    """
    count_blocks(frames, block_frames, first_block_frames)
    first = block_frames if first_block_frames is None else first_block_frames
    starts = [0, *range(first, frames, block_frames)]
    return tuple(FrameRange(a, b) for a, b in zip(starts, [*starts[1:], frames], strict=True))


def video_frames_of(first_frame: int, latent_frames: int, temporal_factor: int) -> int:
    """Video frames of a run of latent frames: ``temporal_factor`` each, but 1 for the first of the stream.

    >>> video_frames_of(0, 3, temporal_factor=4), video_frames_of(3, 3, temporal_factor=4)
    (9, 12)

    Raises:
        GeometryError: a negative count.
    """
    if first_frame < 0 or latent_frames < 0:
        raise GeometryError(
            f"Frame counts are 0 or more, but first_frame={first_frame} and latent_frames={latent_frames} came."
        )
    missing = temporal_factor - 1 if first_frame == 0 and latent_frames > 0 else 0
    return latent_frames * temporal_factor - missing


def latent_frames_of(first_frame: int, video_frames: int, temporal_factor: int) -> int:
    """Latent frames of a run of video frames that begins at latent frame ``first_frame``.

    >>> latent_frames_of(0, 81, temporal_factor=4), latent_frames_of(3, 8, temporal_factor=4)
    (21, 2)

    Raises:
        GeometryError: it ends inside a latent frame.
    """
    whole = video_frames + (temporal_factor - 1 if first_frame == 0 else 0)
    if video_frames < 1 or whole % temporal_factor:
        form = f"1 + {temporal_factor} n" if first_frame == 0 else f"a multiple of {temporal_factor}"
        raise GeometryError(
            f"{video_frames} video frames came, but here their number must be {form}; cut or extend the clip."
        )
    return whole // temporal_factor
