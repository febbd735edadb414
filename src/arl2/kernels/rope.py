"""Rotary position embedding over (frame, row, column), computed from positions: no table, so no last frame.

Legend: B batch, T tokens, H heads, D head size, P = D/2 complex pairs (adjacent channels 2i, 2i+1).
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from arl2.float64 import float64_device

THETA = 10000.0
_LANES = 8  # complex numbers in the widest vector register of a CPU


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """How the ``D/2`` pairs of a head are shared among the axes (frame, row, column); frames take the rest."""
    pairs = head_dim // 2
    spatial = pairs // 3
    return pairs - 2 * spatial, spatial, spatial


def rope_angles(
    frames: Sequence[int], rows: int, columns: int, head_dim: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "tokens pairs"]:
    """Angle of every pair of every token in raster order (frame, row, column), in float64.

    An axis that owns ``m`` channels turns pair ``i`` by ``position * 10000**(-2 i / m)``. Float64 keeps the angle of
    frame 10,000,000 to a few 1e-9; in float32 it would be off by half a turn.

    Args:
        frames: absolute latent-frame index of each frame.
        rows, columns: token grid of a frame.
        head_dim: head size ``D``, even.
        device: where they are computed; one without float64 cannot.
    """
    # Positions are counted out where they are needed: a copy from the host would stall a GPU, and no graph holds one.
    positions = (
        torch.cat([_whole_numbers(run, device) for run in _runs(frames)]),
        _whole_numbers(range(rows), device),
        _whole_numbers(range(columns), device),
    )
    frame, row, column = (
        torch.outer(p, _frequencies(pairs, device)) for p, pairs in zip(positions, split_pairs(head_dim), strict=True)
    )
    grid = (len(frames), rows, columns)
    return torch.cat(
        [
            frame[:, None, None].expand(*grid, -1),
            row[None, :, None].expand(*grid, -1),
            column[None, None, :].expand(*grid, -1),
        ],
        dim=-1,
    ).flatten(0, 2)


class Rotation:
    """Cosine and sine of every pair of every token, made once per pass and shared by all layers."""

    def __init__(self, angles: Float[Tensor, "tokens pairs"], device: torch.device | str | None = None) -> None:
        # float32 holds a cosine to 6e-8; only the angle itself needed more.
        self.cos: Float[Tensor, "tokens 1 pairs"] = angles.cos().float()[:, None].to(device)
        self.sin: Float[Tensor, "tokens 1 pairs"] = angles.sin().float()[:, None].to(device)

    @staticmethod
    def of_grid(
        frames: Sequence[int], rows: int, columns: int, head_dim: int, device: torch.device | str
    ) -> "Rotation":
        """That of whole frames, on ``device``; its angles are computed where float64 is. Args as ``rope_angles``."""
        return Rotation(rope_angles(frames, rows, columns, head_dim, float64_device(device)), device)

    def __call__(self, x: Float[Tensor, "batch tokens heads head"]) -> Float[Tensor, "batch tokens heads head"]:
        """Turn each pair of ``x`` by its token's angle; computed in float32 or better, returned in ``x``'s dtype."""
        return _turned(x, self.cos, self.sin)

    def clone(self) -> "Rotation":
        """A copy with tensors of its own."""
        part = copy.copy(self)
        part.cos, part.sin = self.cos.clone(), self.sin.clone()
        return part

    def first(self, tokens: int) -> "Rotation":
        """That of the first tokens alone."""
        return self._with(self.cos[:tokens], self.sin[:tokens])

    def without_frames(self) -> "Rotation":
        """That of rows and columns alone: tokens of all frames are turned alike."""
        pairs, _, _ = split_pairs(2 * self.cos.shape[-1])
        still = self.clone()
        still.cos[..., :pairs], still.sin[..., :pairs] = 1.0, 0.0
        return still

    def none(self) -> "Rotation":
        """One that turns nothing, for as many tokens."""
        return self._with(torch.ones_like(self.cos), torch.zeros_like(self.sin))

    def within_frames(self, frame_tokens: int, part: slice) -> "Rotation":
        """That of a part of every frame's tokens."""
        waves = (wave.unflatten(0, (-1, frame_tokens))[:, part].flatten(0, 1) for wave in (self.cos, self.sin))
        return self._with(*waves)

    def _with(self, cos: Tensor, sin: Tensor) -> "Rotation":
        other = copy.copy(self)
        other.cos, other.sin = cos, sin
        return other


def turn_frames(
    x: Float[Tensor, "batch tokens heads head"], frames: Sequence[int]
) -> Float[Tensor, "batch tokens heads head"]:
    """Rotated queries or keys, turned as if they stood other frames later: rows and columns stay.

    Turning all queries and keys alike changes no score. A move by 0 is exact.

    Args:
        frames: how far to move; one number for all tokens, or one for each of as many equal stretches of them.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    head_dim = x.shape[-1]
    where = float64_device(x.device)
    angles = torch.zeros(len(frames), head_dim // 2, dtype=torch.float64, device=where)
    pairs, _, _ = split_pairs(head_dim)
    moves = torch.tensor(frames, dtype=torch.float64, device=where)
    angles[:, :pairs] = torch.outer(moves, _frequencies(pairs, where))
    stretched = angles.repeat_interleave(x.shape[1] // len(frames), dim=0) if len(frames) > 1 else angles
    cos, sin = (wave.to(dtype).to(x.device)[:, None] for wave in (stretched.cos(), stretched.sin()))
    return _turned(x, cos, sin)


def turn_state(state: Float[Tensor, "batch heads key value"], frames: int) -> Float[Tensor, "batch heads key value"]:
    """A recurrent state whose keys are turned as if all of them stood ``frames`` frames later.

    The state is a sum of ``k v^T`` over rotated keys, so turning its key dimension turns them all: a stream may count
    its frames from another origin.
    """
    return turn_frames(state.transpose(-1, -2), [frames]).transpose(-1, -2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and pairs.shape[-2] % _LANES == 0 and not torch.compiler.is_compiling():
        # The same products and sums, and so the same bits, in one pass over memory in place of five. What does not fill
        # a vector register is rounded once less there. Compilers make one pass of the other form.
        turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos.to(pairs.dtype), sin.to(pairs.dtype))
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def _runs(frames: Sequence[int]) -> list[range]:
    """The same frames as stretches that count up one by one."""
    if isinstance(frames, range) and frames.step == 1:
        return [frames]
    runs: list[range] = []
    for frame in frames:
        if runs and runs[-1].stop == frame:
            runs[-1] = range(runs[-1].start, frame + 1)
        else:
            runs.append(range(frame, frame + 1))
    return runs


def _whole_numbers(run: range, device: torch.device | str) -> Tensor:
    return torch.arange(run.start, run.stop, dtype=torch.float64, device=device)


def _frequencies(pairs: int, device: torch.device | str) -> Tensor:
    return THETA ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
