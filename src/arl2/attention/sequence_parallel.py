"""Sequence parallelism: one stream over several ranks (processes, one GPU each), after DeepSpeed Ulysses.

Every rank holds a part of each frame's tokens, and computes for these alone whatever is computed token by token: norms,
projections, cross-attention, feed-forward. Tokens meet in self-attention. There an all-to-all turns all heads of some
tokens into all tokens of some heads, ``[B, T/n, H, D]`` into ``[B, T, H/n, D]``; softmax windows and recurrent states
are per head, so a rank keeps those of its own heads and no others. A second all-to-all turns the result back
(arXiv 2309.14509).

Each frame is split, not the block: what is one number a frame (modulation, rotation) then serves a rank's tokens as it
serves all. Parts differ by one token where ranks do not divide a frame.

Legend: n ranks, B batch, F frames, S tokens a frame, T = F S, H heads, D head size, d width.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from arl2.errors import ConfigError, GeometryError, ProcessLostError
from arl2.kernels.rope import Rotation


@dataclass(frozen=True)
class SequenceParallel:
    """This rank among those that generate a stream together; alone, every method gives back what it was given.

    Attributes:
        rank: of this process, from 0.
        ranks: how many there are.
        group: what they talk through; None for one.
        device: where its tensors must be.
    """

    rank: int = 0
    ranks: int = 1
    group: dist.ProcessGroup | None = None
    device: torch.device | str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    # Tokens and heads of a rank

    def own_heads(self, heads: int) -> int:
        """How many heads of a layer a rank keeps the memory of."""
        return heads // self.ranks

    def frame_parts(self, frame_tokens: int) -> list[int]:
        """Tokens of a frame on each rank, the larger parts first.

        Raises:
            GeometryError: fewer tokens than ranks.
        """
        if frame_tokens < self.ranks:
            raise GeometryError(
                f"A frame of {frame_tokens} tokens cannot be shared by {self.ranks} ranks; use fewer ranks, or a "
                "larger picture."
            )
        least, more = divmod(frame_tokens, self.ranks)
        return [least + (rank < more) for rank in range(self.ranks)]

    def own_part(self, frame_tokens: int) -> slice:
        """Which tokens of every frame this rank holds."""
        stops = list(itertools.accumulate(self.frame_parts(frame_tokens), initial=0))
        return slice(stops[self.rank], stops[self.rank + 1])

    def require_inference(self) -> None:
        """Raise ``ConfigError`` where gradients are recorded: they do not cross from rank to rank."""
        if self.ranks > 1 and torch.is_grad_enabled():
            raise ConfigError(
                f"This model is split over {self.ranks} ranks, which is for streams without gradients; use "
                "torch.no_grad(), or train with enable_parallelism(ulysses_degree=1)."
            )

    def require_alone(self) -> None:
        """Raise ``ConfigError`` for what several ranks do not do together: a parallel pass, as in training."""
        if self.ranks > 1:
            raise ConfigError(
                f"This model is split over {self.ranks} ranks, which generate streams; for a parallel pass over a clip "
                "call enable_parallelism(ulysses_degree=1)."
            )

    def own_rotation(self, rotation: Rotation, *, frame_tokens: int) -> Rotation:
        """That of this rank's tokens."""
        return rotation if self.ranks == 1 else rotation.within_frames(frame_tokens, self.own_part(frame_tokens))

    # Exchanges: every rank calls them in the same order

    def own_tokens(
        self, x: Float[Tensor, "batch tokens width"], *, frame_tokens: int
    ) -> Float[Tensor, "batch own_tokens width"]:
        """This rank's tokens of all; nothing is sent."""
        if self.ranks == 1:
            return x
        return x.unflatten(1, (-1, frame_tokens))[:, :, self.own_part(frame_tokens)].flatten(1, 2)

    def all_tokens(
        self, x: Float[Tensor, "batch own_tokens width"], *, frame_tokens: int
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens of all ranks, on every rank: the same bits everywhere."""
        if self.ranks == 1:
            return x
        parts = self.frame_parts(frame_tokens)
        batch, own, width = x.shape
        frames = own // parts[self.rank]
        counts = [batch * frames * part * width for part in parts]
        pieces = self._exchange([x.flatten()] * self.ranks, counts)
        shaped = (piece.view(batch, frames, -1, width) for piece in pieces)
        return torch.cat(list(shaped), dim=2).flatten(1, 2)

    def to_heads(self, *tensors: Tensor, frame_tokens: int) -> tuple[Tensor, ...]:
        """All heads of this rank's tokens -> all tokens of this rank's heads.

        Args:
            tensors: ``[B, T/n, H, D]`` or, one number a head, ``[B, T/n, H]``. Those of one dtype travel together.

        Returns:
            ``[B, T, H/n, D]`` or ``[B, T, H/n]``, tokens in raster order.
        """
        if self.ranks == 1:
            return tensors
        done: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(x.dtype for x in tensors):
            chosen = [i for i, x in enumerate(tensors) if x.dtype == dtype]
            as_heads = [tensors[i] if tensors[i].dim() == 4 else tensors[i][..., None] for i in chosen]
            for i, whole in zip(chosen, self._to_heads(as_heads, frame_tokens), strict=True):
                done[i] = whole if tensors[i].dim() == 4 else whole[..., 0]
        return tuple(done[i] for i in range(len(tensors)))

    def to_tokens(
        self, x: Float[Tensor, "batch tokens own_heads head"], *, frame_tokens: int, dtype: torch.dtype
    ) -> Float[Tensor, "batch own_tokens heads head"]:
        """All tokens of this rank's heads -> all heads of this rank's tokens, the inverse of :meth:`to_heads`.

        Args:
            dtype: that the numbers are sent in; alone they stay as they are.
        """
        if self.ranks == 1:
            return x
        parts = self.frame_parts(frame_tokens)
        batch, tokens, heads, head_dim = x.shape
        frames, own = tokens // frame_tokens, parts[self.rank]
        of_ranks = x.to(dtype).unflatten(1, (frames, frame_tokens)).split(parts, dim=2)
        pieces = self._exchange(
            [part.flatten() for part in of_ranks], [batch * frames * own * heads * head_dim] * self.ranks
        )
        shaped = [piece.view(batch, frames * own, heads, head_dim) for piece in pieces]
        return torch.cat(shaped, dim=2)

    def gathered(self, x: Tensor, axis: int) -> Tensor | None:
        """The heads of all ranks, along ``axis``, on the CPU of the first rank; None on the others."""
        if self.ranks == 1:
            return x
        nothing = x.new_empty(0)
        pieces = self._exchange(
            [x.flatten() if rank == 0 else nothing for rank in range(self.ranks)],
            [x.numel() if self.is_first else 0] * self.ranks,
        )
        return torch.cat([piece.view(x.shape).cpu() for piece in pieces], dim=axis) if self.is_first else None

    def share(self, x: Tensor, axis: int) -> Tensor:
        """This rank's heads of all; nothing is sent. A tensor that cannot be cut so stays as it is."""
        if self.ranks == 1 or x.dim() <= axis or x.shape[axis] % self.ranks:
            return x
        return x.chunk(self.ranks, dim=axis)[self.rank]

    def any(self, here: bool) -> bool:
        """Whether it is so on at least one rank."""
        if self.ranks == 1:
            return here
        flag = torch.tensor([here], dtype=torch.uint8, device=self.device)
        return any(bool(one) for one in self._exchange([flag] * self.ranks, [1] * self.ranks))

    def _to_heads(self, tensors: Sequence[Tensor], frame_tokens: int) -> Iterator[Tensor]:
        parts, widths = self.frame_parts(frame_tokens), [x.shape[-1] for x in tensors]
        batch, own, heads, _ = tensors[0].shape
        frames, kept = own // parts[self.rank], self.own_heads(heads)
        packed = torch.cat(list(tensors), dim=-1).split(kept, dim=2)
        counts = [batch * frames * part * kept * sum(widths) for part in parts]
        pieces = self._exchange([part.flatten() for part in packed], counts)
        shaped = (piece.view(batch, frames, -1, kept, sum(widths)).split(widths, dim=-1) for piece in pieces)
        for of_ranks in zip(*shaped, strict=True):
            yield torch.cat(of_ranks, dim=2).flatten(1, 2)

    def _exchange(self, sent: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
        """Send one flat tensor to each rank, and receive ``counts`` numbers from each."""
        received = sent[0].new_empty(sum(counts))
        with all_answer():
            dist.all_to_all_single(
                received, torch.cat(list(sent)), list(counts), [part.numel() for part in sent], group=self.group
            )
        return received.split(list(counts))


ALONE = SequenceParallel()


@contextmanager
def all_answer() -> Iterator[None]:
    """Turn the transport's error when another rank has gone, or does not answer in time, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "Another rank of this stream has ended or does not answer, so this one ends, too: look at the first "
            "message of the others for the cause, then run the command again. "
            f"({str(error).strip().splitlines()[0]})"
        ) from error
