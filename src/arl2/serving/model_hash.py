"""Which model made a video; see :mod:`arl2.streams.model_hash` for what the hash covers."""

from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.streams.model_hash import parts_hash


def model_hash(pipe: ARL2Pipeline) -> str:
    """Hexadecimal, 64 digits: the hash that manifests and snapshots carry."""
    return parts_hash(pipe.transformer, pipe.codec)
