"""Clips of the shapes world as latents, encoded once and cached on disk."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from arl2.errors import CheckpointError
from arl2.files.atomic import atomic_file
from arl2.files.tensors import read_safetensors
from arl2.shapes.codec import GroupCodec
from arl2.shapes.world.renderer import render
from arl2.shapes.world.scene import Scenes, sample_scenes

SHARD = 256  # clips a file; what is lost when encoding is interrupted
_AT_ONCE = 8


@runtime_checkable
class SceneSource(Protocol):
    """Scenes ``first`` to ``first + count - 1`` of a seed's endless sequence, as ``sample_scenes`` gives them."""

    def __call__(self, count: int, *, seed: int, first: int = 0) -> Scenes: ...


@torch.no_grad()
def encoded_clips(
    codec: GroupCodec,
    folder: Path,
    *,
    clips: int,
    frames: int,
    seed: int,
    say: Callable[[str], None],
    scenes: SceneSource = sample_scenes,
    kind: str = "",
) -> Float[Tensor, "clips channels frames height width"]:
    """Normalised latents (half precision) of scenes ``0 .. clips - 1`` of ``seed``, from the cache or encoded.

    Args:
        codec: of the latents; another encoder gets a folder of its own.
        folder: of the cache; interrupted work resumes at the first missing shard.
        clips: of a shard that has fewer, the rest is encoded; in whole batches, so that each clip has the same bits.
        frames: latent frames a clip.
        say: called with a line of text after every shard.
        scenes: where the scenes come from; ``kind`` names them in the folder, if not those of ``sample_scenes``.

    Raises:
        CheckpointError: a shard that cannot be read.
    """
    folder = folder / f"{encoder_fingerprint(codec)}-{kind}{seed}-{frames}"
    folder.mkdir(parents=True, exist_ok=True)
    video_frames = codec.frames_of(0, frames)
    shards = {
        folder / f"{first // SHARD:05d}.safetensors": range(first, min(first + SHARD, clips))
        for first in range(0, clips, SHARD)
    }
    kept = {path: _held(path) for path in shards if path.exists()}
    missing = {path: wanted for path, wanted in shards.items() if path not in kept or len(kept[path]) < len(wanted)}
    started = time.monotonic()
    for encoded, (path, wanted) in enumerate(missing.items(), start=1):
        parts = [kept[path]] if path in kept else []
        for first in range(wanted.start + sum(map(len, parts)), wanted.stop, _AT_ONCE):
            parts.append(codec.encode(render(scenes(_AT_ONCE, seed=seed, first=first), video_frames)).half())
        kept[path] = torch.cat(parts)
        with atomic_file(path) as partial:
            save_file({"latents": kept[path]}, partial)
        minutes = (time.monotonic() - started) / 60 / encoded * (len(missing) - encoded)
        say(f"Encoded {wanted.stop} of {clips} clips; {minutes:.0f} more minutes before training.")
    return torch.cat([kept[path][: len(wanted)] for path, wanted in shards.items()])


def _held(path: Path) -> Float[Tensor, "clips channels frames height width"]:
    held = read_safetensors(path)
    if list(held) != ["latents"]:
        raise CheckpointError(f"{path} holds {', '.join(held)} instead of latents; delete it and run again.")
    return held["latents"]


def encoder_fingerprint(codec: GroupCodec) -> str:
    """A short hash of what latents depend on: the encoder's weights and the latent statistics, not the decoder."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.encoder.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
    digest.update(json.dumps([codec.config.latents_mean, codec.config.latents_std]).encode())
    return digest.hexdigest()[:16]
