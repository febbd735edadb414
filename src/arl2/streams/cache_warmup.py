"""Cache warm-up: memory and decoder from the last latents, by cache-update passes and by decoding.

A window that is filled again differs a little from the original: its oldest frames no longer know of those before them,
and all of them are seen under the current prompt. States are not rebuilt, they are given.
:meth:`arl2.streams.stream.Stream.save` says how large the difference is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from arl2.rollout.denoise import Rollout
from arl2.streams.components import for_codec
from arl2.streams.recent import Recent
from arl2.video.codec import CodecCache, VideoCodec

DECODER_FRAMES = 12  # latent frames: leaves an error of 1e-4 in pixels of Wan's VAE (random weights, published depth)

States = Sequence[dict[str, Tensor]]


def states_of(rollout: Rollout) -> tuple[dict[str, Tensor], ...]:
    """Copies of the recurrent states of each memory."""
    return tuple(memory.states() for memory in rollout.memories)


@torch.no_grad()
def warm_up_memory(rollout: Rollout, recent: Recent, states: States, *, frames: int) -> None:
    """Bring memory to ``frames``: states as given, windows from the kept latents.

    Args:
        rollout: its memories are written.
        recent: latents up to ``frames``.
        states: of ``states_of`` at that position.
        frames: position of the next block.
    """
    if rollout.memories[0].has_window and recent.last:
        for memory in rollout.memories:
            # States only reach what other layers keep of these passes; the given ones replace them below.
            memory.scale_states(0.0)
        recache(rollout, recent)
    else:
        for memory in rollout.memories:
            memory.begin_at(frames)
    for memory, own in zip(rollout.memories, states, strict=True):
        memory.restore_states(own)


@torch.no_grad()
def recache(rollout: Rollout, recent: Recent) -> None:
    """KV re-caching: empty the windows and commit the kept latents under the current prompt.

    States continue, and take these latents in a second time. Those over evicted blocks take none in that they know
    already, nor one that the window shows.

    Sinks that are older than the rest are committed first, as the start of a stream, and leave the states alone.
    """
    if recent.sinks_apart:
        before = states_of(rollout)
        for memory in rollout.memories:
            memory.scale_states(0.0)
            memory.begin_at(recent.start)
        for block in recent.sinks_apart:
            rollout.commit(block.latents, known=block.known)
        for memory, own in zip(rollout.memories, before, strict=True):
            memory.restore_states(own)
    for memory in rollout.memories:
        memory.begin_at(recent.last[0].frames.start, keep_sinks=bool(recent.sinks_apart))
    for i, block in enumerate(recent.last):
        for memory in rollout.memories:
            memory.take_back_states(len(recent.last) - i, begun=i > 0)
        rollout.commit(block.latents, known=block.known)


@torch.no_grad()
def warm_up_decoder(codec: VideoCodec, recent: Recent) -> CodecCache:
    """The decoder's cache after the last kept latents: a few of them are decoded and the frames dropped."""
    cache = codec.new_cache("decoder")
    if recent.last:
        latents = torch.cat([block.latents for block in recent.last], dim=2)
        # One at a time: the decoded frames of all would be the largest thing in memory.
        for frame in for_codec(codec, latents[:, :, -DECODER_FRAMES:]).split(1, dim=2):
            codec.decode(frame, cache)
    return cache
