"""Writing a model in a published layout, so that the published code and its relatives can read it."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from arl2.attention.plan import all_kinds, converted_layers
from arl2.checkpoints.layouts import to_diffusers, to_original
from arl2.checkpoints.merging import with_published_alpha
from arl2.checkpoints.reading import TRANSFORMER
from arl2.errors import CheckpointError
from arl2.files.atomic import atomic_file, atomic_folder
from arl2.files.modes import open_to_readers
from arl2.files.regular import first_line
from arl2.model.transformer import CausalWanTransformer3DModel

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

PublishedLayout = Literal["wan", "arl2", "diffusers"]
# Of diffusers' config, by our names; it has no place for the rest.
_SHARED = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "eps",
)


def export_checkpoint(
    model: CausalWanTransformer3DModel, path: str | Path, *, layout: PublishedLayout = "arl2", replace: bool = False
) -> None:
    """Write the weights under the published names.

    Args:
        path: of ``"arl2"`` and ``"wan"`` a file: ``.pt`` (a dict with ``generator``, names behind ``model.``) or
            ``.safetensors`` (bare names). Of ``"diffusers"`` a folder, whose ``transformer`` is what
            ``diffusers.WanTransformer3DModel.from_pretrained`` reads.
        layout: ``"arl2"``; or for all-softmax models without LoRAs ``"wan"``, the original naming, or ``"diffusers"``.
        replace: a folder that is there gives way; a file does so in any case.

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
    if config.state_horizon is not None:
        raise CheckpointError(
            f"The published layouts cannot say that states reach back {config.state_horizon} latent frames "
            "(state_horizon); save the model with save_pretrained()."
        )
    if layout != "arl2" and (converted_layers(config.layer_plan) or config.ffn_rank):
        name = {"wan": "The original layout", "diffusers": "diffusers' layout"}[layout]
        raise CheckpointError(
            f"{name} holds softmax models only, but this plan is {config.layer_plan} with feed-forward rank "
            f'{config.ffn_rank}; export with layout="arl2", or save the model with save_pretrained().'
        )
    if layout == "diffusers" and path.suffix in (".pt", ".safetensors"):
        raise CheckpointError(f"{path} is named like a file; the layout of diffusers is a folder.")
    if layout != "diffusers" and path.suffix not in (".pt", ".safetensors"):
        raise CheckpointError(f"{path} ends in {path.suffix or 'nothing'}; export to .pt or .safetensors.")
    # No file of these layouts says its alpha; readers take the published one.
    tensors = {name: t.detach().cpu().contiguous() for name, t in with_published_alpha(model).state_dict().items()}
    published = to_original(tensors, len(config.layer_plan))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if layout == "diffusers":
            with atomic_folder(path, replace=replace) as partial:
                _diffusers_model(model, published).save_pretrained(partial / TRANSFORMER)
                open_to_readers(partial)
            return
        with atomic_file(path) as partial:
            if path.suffix == ".pt":
                generator = {f"model.{name}": tensor for name, tensor in published.items()}
                with partial.open("wb") as file:  # given a path, torch would write its name into the file
                    torch.save({"generator": generator}, file)
            else:
                save_file({name: t.contiguous() for name, t in published.items()}, partial, metadata={"format": "pt"})
                open_to_readers(partial)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({first_line(error)}); make room or choose another."
        ) from error


def _diffusers_model(model: CausalWanTransformer3DModel, original: dict[str, Tensor]) -> "WanTransformer3DModel":
    """diffusers' own transformer with these weights, every tensor in its dtype."""
    from diffusers import WanTransformer3DModel

    config, layers = model.config, len(model.config.layer_plan)
    with torch.device("meta"):
        theirs = WanTransformer3DModel(num_layers=layers, **{name: config[name] for name in _SHARED})
    theirs.load_state_dict(to_diffusers(original, layers), strict=True, assign=True)
    return theirs
