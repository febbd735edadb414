"""Which model made a video; see :mod:`arl2.rollout.model_hash` for what the hash covers."""

from arl2.rollout.model_hash import parts_hash
from arl2.rollout.pipeline import ARL2Pipeline


def model_hash(pipe: ARL2Pipeline) -> str:
    """Hexadecimal, 64 digits: the hash that manifests and snapshots carry."""
    return parts_hash(pipe.transformer, pipe.codec)
