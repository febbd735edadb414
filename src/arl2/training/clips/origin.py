"""Which model clips were made with, and whether it is the one that trains on them.

A part is known by a hash of its tensors' names, shapes and a sample of their values, rounded to bfloat16: so a model is
the same whether it is loaded in float32 or bfloat16, and two trainings of it are not.
"""

import functools
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.pipeline.folder import load_codec, load_text
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.shapes.prompts.text import ShapesText
from arl2.streams.model_hash import sampled_bytes
from arl2.text.interface import TextPart
from arl2.text.words import WordText
from arl2.training.clips.dataset import ClipSet
from arl2.training.conversion.students import Teacher

ROLLOUTS = "rollouts"
"""The fact ``source`` of clips that a teacher made; all others are encoded videos."""


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


def check_origins(sets: Sequence[ClipSet], teacher: Teacher, name: str) -> None:
    """Refuse clips of another model: rollouts must be the teacher's, real clips need its codec, both its text part.

    Clips of which nothing is recorded pass, and so does a text part whose weights are read only when a prompt comes.

    Args:
        sets: of clips, each from its folder.
        teacher: that is to be followed; each of its parts is loaded and hashed once at the most.
        name: of the teacher, for people.

    Raises:
        ConfigError: clips of another model.
        CheckpointError: the teacher's codec or text part is damaged.
    """
    own_hash = functools.cache(functools.partial(_teacher_hash, teacher))
    for clips in sets:
        rollouts = clips.facts.get("source") == ROLLOUTS
        parts = [part for part in ("transformer" if rollouts else "codec", "text") if f"{part}_hash" in clips.facts]
        own = {part: own_hash(part) for part in parts}
        for part, here in own.items():
            there = str(clips.facts[f"{part}_hash"])
            if here is not None and there != here:
                what = "rollouts" if rollouts else "clips"
                raise ConfigError(
                    f"The {what} in '{clips.folder}' were made with another {part} ({there[:12]}) than that of the "
                    f"teacher '{name}' ({here[:12]}); make them with this teacher ('arl2 rollouts --model ...'), or "
                    "set any_clips=true to train on them all the same."
                )


def part_hash(part: nn.Module) -> str:
    """Hexadecimal, 64 digits; the same in float32 and in bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(sampled_bytes(tensor, dtype=torch.bfloat16))
    return digest.hexdigest()


def _teacher_hash(teacher: Teacher, part: str) -> str | None:
    """Of one part; None of a text part whose weights are not at hand."""
    if part == "transformer":
        return part_hash(teacher.model)
    if part == "codec":
        codec = load_codec(teacher.folder, dtype=torch.float32)
        assert isinstance(codec, nn.Module)  # one of the table's classes
        return part_hash(codec)
    encoder = _encoder(load_text(teacher.folder))
    return None if encoder is None else part_hash(encoder)


def _encoder(text: TextPart) -> nn.Module | None:
    if isinstance(text, ShapesText):
        return text.words.encoder
    return text.encoder if isinstance(text, WordText) else None
