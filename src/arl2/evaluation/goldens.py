"""Golden folders: reference outputs of the published code on tiny random models (layout in docs/goldens.md)."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arl2.errors import CheckpointError, ConfigError
from arl2.evaluation.seeded_tensors import SeededTensors, seeded_tensors
from arl2.files.plain import parse_json, read_json
from arl2.files.tensors import read_safetensors_with_metadata
from arl2.model.settings import GenerationSettings

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
class SampledGolden:
    """One model sampled as ``config.json`` says, from conditioning frames or with a solver and guidance.

    Attributes:
        name: ``unipc_50``, for instance.
        checkpoint: its ``.pt`` file; None if its weights are made again from their seed.
        weights: these weights, under published names.
        tensors: recorded inputs and outputs; latents are ``[B, C, F, h, w]``.
        settings: of generation.
        model_settings: config that the checkpoint file lacks.
    """

    name: str
    checkpoint: Path | None
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    settings: GenerationSettings
    model_settings: dict[str, Any]

    @property
    def known(self) -> Tensor | None:
        """Conditioning latents ``[B, C, K, h, w]``, if the video starts with some."""
        return self.tensors.get("known")

    @property
    def fresh_noise(self) -> list[Tensor]:
        """The noise between denoising steps, in the order of use."""
        return [tensor for name, tensor in sorted(self.tensors.items()) if name.startswith("fresh_noise.")]


@dataclass(frozen=True)
class GoldenFolder:
    """Everything in a golden folder; one of sampled models alone has no schedule and no delta rule."""

    path: Path
    rollouts: tuple[RolloutGolden, ...]
    sampled: tuple[SampledGolden, ...]
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
    paths = sorted(folder.glob("rollout_*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} has no rollout_*.safetensors; it is not a golden folder.")
    cases = _sampled_cases(folder / "config.json")
    sampled = tuple(_read_sampled(path, cases[_name_of(path)]) for path in paths if _name_of(path) in cases)
    rollouts = tuple(_read_rollout(path) for path in paths if _name_of(path) not in cases)
    if not rollouts:
        return GoldenFolder(folder, (), sampled, {}, {})
    schedule, _ = read_safetensors_with_metadata(folder / "flow_match_schedule.safetensors")
    _require(folder / "flow_match_schedule.safetensors", schedule, SCHEDULE_TENSORS)
    delta_rule: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_safetensors_with_metadata(folder / "gated_delta_rule.safetensors")[0].items():
        case, _, part = name.partition(".")
        delta_rule.setdefault(case, {})[part] = tensor
    for case, parts in delta_rule.items():
        _require(folder / "gated_delta_rule.safetensors", parts, CASE_TENSORS, f"case {case} of ")
    return GoldenFolder(folder, rollouts, sampled, schedule, delta_rule)


def _name_of(path: Path) -> str:
    return path.stem.removeprefix("rollout_")


def _sampled_cases(path: Path) -> dict[str, dict[str, Any]]:
    """The cases that a folder's ``config.json`` describes one by one; other entries are sizes that all models share."""
    values = read_json(path) if path.is_file() else {}
    return {name: value for name, value in values.items() if isinstance(value, dict)}


def _read_sampled(path: Path, case: dict[str, Any]) -> SampledGolden:
    name, where = _name_of(path), f"{path.with_name('config.json')}: {_name_of(path)}"
    tensors, _ = read_safetensors_with_metadata(path)
    checkpoint, recipe = path.with_name(f"checkpoint_{name}.pt"), path.with_name(f"seeds_{name}.json")
    seeded = seeded_tensors(recipe) if recipe.is_file() else SeededTensors({}, {})
    if not seeded.weights and not checkpoint.is_file():
        raise CheckpointError(f"{path} has no {checkpoint.name} beside it.")
    tensors |= {part: tensor.transpose(1, 2) for part, tensor in seeded.inputs.items()}
    guided = "solver" in case
    _require(path, tensors, ("noise", "text", "latents", *(("negative_text", "timesteps") if guided else ())))
    try:
        model_settings = {
            "num_attention_heads": case["num_heads"],
            "text_len": case["text_len"],
            "block_frames": case["block"],
            **({"low_rank_alpha": case["alpha"]} if "alpha" in case else {}),
        }
        if guided:
            settings = GenerationSettings(
                solver="unipc",
                solver_steps=case["sampling_steps"],
                guidance_scale=case["guidance_scale"],
                shift=case["timestep_shift"],
            )
        else:
            first = case.get("denoising_step_list_first_chunk")
            settings = GenerationSettings(
                steps=tuple(case["denoising_step_list"]),
                first_block_steps=None if first is None else tuple(first),
                warp_steps=case["warp_denoising_step"],
                shift=case["timestep_shift"],
            )
    except KeyError as error:
        raise CheckpointError(f"{where} lacks {error}; the golden folder is not whole.") from error
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be ({error}); correct it.") from error
    return SampledGolden(
        name, None if seeded.weights else checkpoint, seeded.weights, tensors, settings, model_settings
    )


def _read_rollout(path: Path) -> RolloutGolden:
    name = _name_of(path)
    checkpoint = path.with_name(f"checkpoint_{name}.pt")
    if not checkpoint.is_file():
        raise CheckpointError(f"{path} has no {checkpoint.name} beside it.")
    tensors, metadata = read_safetensors_with_metadata(path)
    _require(path, tensors, ROLLOUT_TENSORS)
    try:
        golden = RolloutGolden(
            name=name,
            checkpoint=checkpoint,
            tensors=tensors,
            cfg=parse_json(metadata["cfg"]),
            denoising_steps=tuple(parse_json(metadata["denoising_steps"])),
            timestep_shift=float(metadata["timestep_shift"]),
            lora_alpha=float(metadata["lora_alpha"]),
        )
        golden.settings()  # its cfg has what the checkpoint lacks
        return golden
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its metadata lacks or garbles {error}.") from error


def _require(path: Path, tensors: dict[str, Tensor], names: tuple[str, ...], inside: str = "") -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{inside}{path} lacks {', '.join(missing)}; the golden file is not whole.")


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """``|ours - golden| / |golden|`` (Frobenius), in float64; NaN anywhere gives infinity."""
    ours, golden = ours.detach().cpu().double(), golden.double()
    error = torch.linalg.vector_norm(ours - golden) / torch.linalg.vector_norm(golden)
    return float(error) if torch.isfinite(error) else float("inf")
