"""Whether clips were made with the model that is to train on them."""

import functools
from collections.abc import Sequence

import torch
from torch import nn

from arl2.errors import ConfigError
from arl2.pipeline.folder import load_codec, load_text
from arl2.training.clips.dataset import ClipSet
from arl2.training.clips.origin import ROLLOUTS, encoder_hash, part_hash
from arl2.training.conversion.students import Teacher


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


def _teacher_hash(teacher: Teacher, part: str) -> str | None:
    """Of one part; None of a text part whose weights are not at hand."""
    if part == "transformer":
        return part_hash(teacher.model)
    if part == "codec":
        codec = load_codec(teacher.folder, dtype=torch.float32)
        assert isinstance(codec, nn.Module)  # one of the table's classes
        return part_hash(codec)
    return encoder_hash(load_text(teacher.folder))
