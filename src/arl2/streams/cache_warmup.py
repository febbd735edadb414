"""Memory and decoder from the last latents: clean passes fill windows again, decoding leads the codec up to now.

A window that is filled again differs a little from the one that was: its oldest frames no longer know of those before
them, and what came under an earlier prompt is seen under the present one. States are not rebuilt, they are given. How
much it differs, :meth:`arl2.streams.stream.Stream.save` says.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from arl2.rollout.denoise import Rollout
from arl2.streams.codec_device import for_codec
from arl2.streams.recent import Recent
from arl2.video.codec import CodecCache, VideoCodec

DECODER_FRAMES = 12  # latent frames: leaves 1e-4 of the pictures of Wan's codec (random weights, published depth)

States = Sequence[dict[str, Tensor]]


def states_of(rollout: Rollout) -> tuple[dict[str, Tensor], ...]:
    """Copies of the recurrent states of each memory."""
    return tuple(memory.states() for memory in rollout.memories)


@torch.no_grad()
def prime_memory(rollout: Rollout, recent: Recent, states: States, *, frames: int) -> None:
    """Stand at ``frames`` again: states as given, windows from the kept latents.

    Args:
        rollout: its memories are written.
        recent: latents up to ``frames``.
        states: as ``states_of`` gave them there.
        frames: position of the next block.
    """
    if rollout.memories[0].has_window and recent.last:
        for memory in rollout.memories:
            # What a hybrid layer remembers while windows are filled only colours what other layers keep.
            memory.scale_states(0.0)
        recommit(rollout, recent)
    else:
        for memory in rollout.memories:
            memory.begin_at(frames)
    for memory, own in zip(rollout.memories, states, strict=True):
        memory.restore_states(own)


@torch.no_grad()
def recommit(rollout: Rollout, recent: Recent) -> None:
    """Empty the windows and commit the kept latents under the present prompt; states go on from where they are.

    Sinks that are older than the rest are committed first, as the start of a stream, and leave the states alone.
    """
    if recent.sinks_apart:
        before = states_of(rollout)
        for memory in rollout.memories:
            memory.scale_states(0.0)
            memory.begin_at(recent.start)
        for piece in recent.sinks_apart:
            rollout.commit(piece.latents)
        for memory, own in zip(rollout.memories, before, strict=True):
            memory.restore_states(own)
    for memory in rollout.memories:
        memory.begin_at(recent.last[0].frames.start, keep_sinks=bool(recent.sinks_apart))
    for piece in recent.last:
        rollout.commit(piece.latents)


@torch.no_grad()
def prime_decoder(codec: VideoCodec, recent: Recent) -> CodecCache:
    """A decoder that has just given the last kept latents: a few are decoded and their pictures dropped."""
    cache = codec.new_cache("decoder")
    if recent.last:
        latents = torch.cat([piece.latents for piece in recent.last], dim=2)
        # One at a time: the pictures of all would be the largest thing in memory.
        for frame in for_codec(codec, latents[:, :, -DECODER_FRAMES:]).split(1, dim=2):
            codec.decode(frame, cache)
    return cache
