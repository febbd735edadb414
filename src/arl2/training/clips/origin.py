"""Which model clips were made with.

A part is known by a hash of its tensors' names, shapes and a sample of their values, rounded to bfloat16: so a model is
the same whether it is loaded in float32 or bfloat16, and two trainings of it are not.
"""

import hashlib

import torch
from torch import nn

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.model_hash import sampled_bytes
from arl2.text.interface import EncoderAtHand, TextPart

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
    text_hash = encoder_hash(pipe.text)
    return facts if text_hash is None else {**facts, "text_hash": text_hash}


def part_hash(part: nn.Module) -> str:
    """Hexadecimal, 64 digits; the same in float32 and in bfloat16."""
    digest = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(sampled_bytes(tensor, dtype=torch.bfloat16))
    return digest.hexdigest()


def encoder_hash(text: TextPart) -> str | None:
    """Of a text part; None where its weights are read only when a prompt comes."""
    return part_hash(text.encoder) if isinstance(text, EncoderAtHand) else None
