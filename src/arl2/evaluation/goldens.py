"""Golden folders: reference outputs of the published code on tiny random models (layout in docs/goldens.md)."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arl2.errors import CheckpointError

SCHEDULE_TENSORS = ("sigmas", "timesteps", "training_weights", "warped_steps_1000_750_500_250")
CASE_TENSORS = ("q", "k", "v", "g", "beta", "o", "final_state")
ROLLOUT_TENSORS = (
    *("noise", "prompt_embeds", "timesteps", "latents"),
    *("flow_pred_first_pass", "flow_pred_second_block_first_pass"),
    *("diffusion_forcing.timesteps", "diffusion_forcing.flow_pred"),
    *("teacher_forcing.clean", "teacher_forcing.timesteps", "teacher_forcing.flow_pred"),
)


@dataclass(frozen=True)
class RolloutGolden:
    """One model and its reference outputs.

    Attributes:
        name: ``hybrid_lora``, for instance.
        checkpoint: its ``.pt`` file.
        tensors: recorded inputs and outputs; clips are ``[B, F, C, h, w]`` as published.
        cfg: sizes, and window and sink where the model has them.
        denoising_steps, timestep_shift, lora_alpha: of the rollout.
    """

    name: str
    checkpoint: Path
    tensors: dict[str, Tensor]
    cfg: dict[str, Any]
    denoising_steps: tuple[int, ...]
    timestep_shift: float
    lora_alpha: float

    def clip(self, name: str) -> Tensor:
        """A recorded clip in our layout, ``[B, C, F, h, w]``."""
        return self.tensors[name].transpose(1, 2)

    def settings(self) -> dict[str, Any]:
        """Config that the checkpoint file lacks."""
        config: dict[str, Any] = {
            "num_attention_heads": self.cfg["num_heads"],
            "text_len": self.cfg["text_len"],
            "block_frames": self.cfg["num_frame_per_block"],
        }
        if self.lora_alpha:
            config["low_rank_alpha"] = self.lora_alpha
        if self.cfg.get("local_attn_size", -1) != -1:
            config |= {"window": self.cfg["local_attn_size"], "sink": self.cfg["sink_size"]}
        return config


@dataclass(frozen=True)
class GoldenFolder:
    """Everything in a golden folder."""

    path: Path
    rollouts: tuple[RolloutGolden, ...]
    schedule: dict[str, Tensor]
    delta_rule: dict[str, dict[str, Tensor]]


def packaged_goldens() -> Path:
    """The small set that ships with the package."""
    return Path(str(files("arl2.evaluation").joinpath("golden_set")))


def read_goldens(folder: str | Path) -> GoldenFolder:
    """Read a golden folder.

    Raises:
        CheckpointError: no folder, an incomplete file, or a rollout without its checkpoint.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"There is no golden folder {folder}; give one with rollout_*.safetensors in it.")
    rollouts = tuple(_read_rollout(path) for path in sorted(folder.glob("rollout_*.safetensors")))
    if not rollouts:
        raise CheckpointError(f"{folder} has no rollout_*.safetensors; it is not a golden folder.")
    schedule, _ = _read(folder / "flow_match_schedule.safetensors")
    _require(folder / "flow_match_schedule.safetensors", schedule, SCHEDULE_TENSORS)
    cases: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _read(folder / "gated_delta_rule.safetensors")[0].items():
        case, _, part = name.partition(".")
        cases.setdefault(case, {})[part] = tensor
    for case, parts in cases.items():
        _require(folder / "gated_delta_rule.safetensors", parts, CASE_TENSORS, f"case {case} of ")
    return GoldenFolder(folder, rollouts, schedule, cases)


def _read_rollout(path: Path) -> RolloutGolden:
    name = path.stem.removeprefix("rollout_")
    checkpoint = path.with_name(f"checkpoint_{name}.pt")
    if not checkpoint.is_file():
        raise CheckpointError(f"{path} has no {checkpoint.name} beside it.")
    tensors, metadata = _read(path)
    _require(path, tensors, ROLLOUT_TENSORS)
    try:
        golden = RolloutGolden(
            name=name,
            checkpoint=checkpoint,
            tensors=tensors,
            cfg=json.loads(metadata["cfg"]),
            denoising_steps=tuple(json.loads(metadata["denoising_steps"])),
            timestep_shift=float(metadata["timestep_shift"]),
            lora_alpha=float(metadata["lora_alpha"]),
        )
        golden.settings()  # its cfg has what the checkpoint lacks
        return golden
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata lacks or garbles {error}.") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole golden file ({error}).") from error


def _require(path: Path, tensors: dict[str, Tensor], names: tuple[str, ...], inside: str = "") -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{inside}{path} lacks {', '.join(missing)}; the golden file is not whole.")


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """``|ours - golden| / |golden|`` (Frobenius), in float64; NaN anywhere gives infinity."""
    ours, golden = ours.detach().cpu().double(), golden.double()
    error = torch.linalg.vector_norm(ours - golden) / torch.linalg.vector_norm(golden)
    return float(error) if torch.isfinite(error) else float("inf")
