"""Writing a model in a published layout, so that the published code and its relatives can read it."""

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from arl2.attention.plan import all_kinds, converted_layers
from arl2.checkpoints.layouts import to_original
from arl2.checkpoints.merging import with_published_alpha
from arl2.errors import CheckpointError
from arl2.files.plain import first_line
from arl2.model.transformer import CausalWanTransformer3DModel

PublishedLayout = Literal["wan", "arl2"]


def export_checkpoint(
    model: CausalWanTransformer3DModel, path: str | Path, *, layout: PublishedLayout = "arl2"
) -> None:
    """Write the weights under the published names.

    Args:
        path: ``.pt`` (a dict with ``generator``, names behind ``model.``) or ``.safetensors`` (bare names).
        layout: ``"arl2"``, or ``"wan"``: the original naming, for all-softmax models without LoRAs.

    Raises:
        CheckpointError: a model that the layout cannot hold, another kind of file, or a disk that is full.
    """
    path = Path(path)
    config = model.config
    unpublished = [kind for kind in all_kinds() if kind.letter in config.layer_plan and kind.published_names is None]
    if unpublished:
        raise CheckpointError(
            f"The published layouts have no names for {unpublished[0].name} layers (plan {config.layer_plan}); save "
            "the model with save_pretrained()."
        )
    if layout == "wan" and (converted_layers(config.layer_plan) or config.ffn_rank):
        raise CheckpointError(
            f"The original layout holds softmax models only, but this plan is {config.layer_plan} "
            f'with feed-forward rank {config.ffn_rank}; export with layout="arl2".'
        )
    if path.suffix not in (".pt", ".safetensors"):
        raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; export to .pt or .safetensors.")
    # No file of these layouts says its alpha; readers take the published one.
    tensors = {name: t.detach().cpu().contiguous() for name, t in with_published_alpha(model).state_dict().items()}
    published = to_original(tensors, len(config.layer_plan))
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            torch.save({"generator": {f"model.{name}": tensor for name, tensor in published.items()}}, partial)
        else:
            save_file({name: t.contiguous() for name, t in published.items()}, partial, metadata={"format": "pt"})
        partial.replace(path)  # a crash leaves the old file or the new one, never half of one
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({first_line(error)}); make room or choose another."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
