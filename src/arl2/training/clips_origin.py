"""Which model clips were made with, and whether it is the one that trains on them.

A part is known by a hash of its tensors' names, shapes and a sample of their values, rounded to bfloat16: so a model is
the same whether it is loaded in float32 or bfloat16, and two trainings of it are not.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arl2.errors import ConfigError
from arl2.rollout.folder import load_codec, load_text
from arl2.rollout.pipeline import ARL2Pipeline
from arl2.shapes.text import ShapesText
from arl2.text.interface import TextPart
from arl2.text.words import WordText
from arl2.training.students import Teacher

ROLLOUTS = "rollouts"
"""The fact ``source`` of clips that a teacher made; all others are encoded videos."""

_PIECES, _PIECE = 16, 2048  # of a tensor that is larger than all of them


def origin_facts(pipe: ARL2Pipeline) -> dict[str, str]:
    """What a folder of clips keeps of the model: hashes of transformer, codec and, where it is at hand, text part.

    None of a model in float16, whose values do not round to those of its file in bfloat16.
    """
    if pipe.transformer.compute_dtype == torch.float16:
        return {}
    facts = {"transformer_hash": part_hash(pipe.transformer)}
    if isinstance(pipe.codec, nn.Module):
        facts["codec_hash"] = part_hash(pipe.codec)
    encoder = _encoder(pipe.text)
    return facts if encoder is None else {**facts, "text_hash": part_hash(encoder)}


def check_origin(folder: Path, facts: Mapping[str, Any], teacher: Teacher, name: str) -> None:
    """Refuse clips of another model: rollouts must be the teacher's, real clips need its codec, both its text part.

    Clips of which nothing is recorded pass, and so does a text part whose weights are read only when a prompt comes.

    Args:
        folder: of the clips.
        facts: of the folder.
        teacher: that is to be followed.
        name: of the teacher, for people.

    Raises:
        ConfigError: clips of another model.
        CheckpointError: the teacher's codec or text part is damaged.
    """
    rollouts = facts.get("source") == ROLLOUTS
    own: dict[str, str] = {}
    if rollouts and "transformer_hash" in facts:
        own["transformer"] = part_hash(teacher.model)
    if not rollouts and "codec_hash" in facts:
        codec = load_codec(teacher.folder, dtype=torch.float32)
        assert isinstance(codec, nn.Module)  # one of the table's classes
        own["codec"] = part_hash(codec)
    if "text_hash" in facts and (encoder := _encoder(load_text(teacher.folder))) is not None:
        own["text"] = part_hash(encoder)
    for part, here in own.items():
        there = str(facts[f"{part}_hash"])
        if there != here:
            what = "rollouts" if rollouts else "clips"
            raise ConfigError(
                f"The {what} in '{folder}' were made with another {part} ({there[:12]}) than that of the teacher "
                f"'{name}' ({here[:12]}); make them with this teacher ('arl2 rollouts --model ...'), or set "
                "any_clips=true to train on them all the same."
            )


def part_hash(part: nn.Module) -> str:
    """Hexadecimal, 64 digits; the same in float32 and in bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if len(flat) > _PIECES * _PIECE:
        last = len(flat) - _PIECE
        starts = [last * piece // (_PIECES - 1) for piece in range(_PIECES)]
        flat = torch.cat([flat[start : start + _PIECE] for start in starts])
    if flat.is_floating_point():
        flat = flat.to(torch.bfloat16)
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _encoder(text: TextPart) -> nn.Module | None:
    if isinstance(text, ShapesText):
        return text.words.encoder
    return text.encoder if isinstance(text, WordText) else None
