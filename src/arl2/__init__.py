"""arl2: streaming video generation with constant memory.

Importing this package loads no torch; a name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from arl2.version import __version__ as __version__

if TYPE_CHECKING:
    from arl2.checkpoints.load import load_transformer as load_transformer
    from arl2.model.transformer import CausalWanTransformer3DModel as CausalWanTransformer3DModel
    from arl2.pipeline.options import ModelSource as ModelSource
    from arl2.pipeline.options import SamplingOptions as SamplingOptions
    from arl2.pipeline.pipeline import ARL2Pipeline as ARL2Pipeline
    from arl2.pipeline.source import open_pipeline as open_pipeline
    from arl2.rollout.generator import generate_blocks as generate_blocks
    from arl2.streams.stream import Stream as Stream
    from arl2.video.saving import save_video as save_video

_PUBLIC = {
    "ARL2Pipeline": "arl2.pipeline.pipeline",
    "ModelSource": "arl2.pipeline.options",
    "SamplingOptions": "arl2.pipeline.options",
    "open_pipeline": "arl2.pipeline.source",
    "Stream": "arl2.streams.stream",
    "CausalWanTransformer3DModel": "arl2.model.transformer",
    "generate_blocks": "arl2.rollout.generator",
    "load_transformer": "arl2.checkpoints.load",
    "save_video": "arl2.video.saving",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'arl2' has no attribute {name!r}; public names are {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*_PUBLIC, "__version__"]
