"""From a :class:`ModelSource` to a pipeline on its device."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from arl2.errors import ConfigError
from arl2.kernels.attention.variants import refused_on
from arl2.pipeline.assemble import load_components
from arl2.pipeline.devices import checked_device
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_pipeline(
    source: ModelSource,
    options: SamplingOptions | None = None,
    *,
    batch: int = 1,
    ranks: int = 1,
    say: Callable[[str], None] | None = None,
) -> ARL2Pipeline:
    """Load a model onto its device, after checking that what is to be sampled will fit.

    Args:
        source: which model, and where it runs.
        options: what will be sampled, as far as memory depends on it; its height and width become the pipeline's.
        batch: videos at once.
        ranks: processes that share a stream, each with a device of its own; the pipeline is split over them.
        say: gets one sentence about the memory that published parts will take.

    Raises:
        CheckpointError, ConfigError: a part that is missing, damaged or unknown, or a device that is not there.
        MemoryBudgetError: parts that will not fit.
    """
    options = options or SamplingOptions()
    device = checked_device(source.device or "cpu")
    source.execution.check(torch.device(device), offloaded=source.offload == "layers")
    if refusal := refused_on(source.attention_backend, device):
        raise ConfigError(refusal)
    dtype = None if source.dtype is None else _DTYPES[source.dtype]
    loaded = load_components(source, options, dtype=dtype, device=device, batch=batch, ranks=ranks, say=say)
    settings = loaded.settings
    computing = str(loaded.transformer.compute_dtype).removeprefix("torch.")
    logger.info("computing on %s in %s", device, computing)
    height, width = options.height or settings.height, options.width or settings.width
    if told := settings.told_of_size(height, width):
        logger.warning("%s", told)
    sized = replace(settings, height=height, width=width)
    pipe = ARL2Pipeline.from_components(replace(loaded, settings=sized))
    transformer = pipe.transformer
    if device != "cpu" and not transformer.layers.is_offloaded:
        transformer.fuse_qkv_projections()  # on a CPU it gains less than the copy of the weights costs
    transformer.set_attention_backend(source.attention_backend)
    if ranks > 1:
        pipe.enable_parallelism(ulysses_degree=ranks)
    return pipe
