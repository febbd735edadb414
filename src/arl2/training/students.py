"""The models of a conversion run, built in this one place: the frozen teacher, and the student made from it."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from arl2.attention.plan import HybridSpec, parse_plan, plan_of
from arl2.checkpoints.conversion import convert
from arl2.checkpoints.load import load_transformer, transformer_config
from arl2.errors import CheckpointError, ConfigError
from arl2.files.plain import read_json
from arl2.model.precision import cast_model, parameter_dtype
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.rollout.folder import CODEC, GENERATION, TEXT, TRANSFORMER, load_settings, pipeline_folder
from arl2.rollout.settings import GenerationSettings
from arl2.training.trainable import part_of, trained_tensors

Window = int | Literal["model", "all"]
Plan = str | tuple[int, ...]


@dataclass(frozen=True)
class Teacher:
    """The frozen softmax model.

    Attributes:
        folder: of its pipeline.
        model: in float32, in evaluation mode.
        settings: how it is sampled.
        stored: the dtype of its file, which its weights keep when a student is exported.
        own_window: that its file says, whatever ``model`` was given.
    """

    folder: Path
    model: CausalWanTransformer3DModel
    settings: GenerationSettings
    stored: torch.dtype
    own_window: int | None


@dataclass(frozen=True)
class StudentSpec:
    """Which student to make of a teacher.

    Attributes:
        plan: one letter a layer, or the indices of the hybrid layers; None: every layer.
        state_rank, ffn_rank, low_rank_alpha, ffn_rank_layers: as in ``convert``.
        window: of its softmax layers; ``"model"`` is the teacher's own.
        aligned: folder of an export of stage 1 to start from.
        seed: of start values.
    """

    plan: Plan | None = None
    state_rank: int = 0
    ffn_rank: int = 0
    low_rank_alpha: float | None = None
    ffn_rank_layers: Literal["hybrid", "all"] = "hybrid"
    window: Window = "model"
    aligned: str | None = None
    seed: int = 0


def load_teacher(name: str | Path, *, device: torch.device | str, window: Window = "model") -> Teacher:
    """The teacher of an embedded model's name or of a pipeline's folder.

    Args:
        device: where it goes; on ``meta`` only its sizes are read.
        window: latent frames that its softmax layers see; ``"model"`` as in its config, ``"all"`` the whole past.

    Raises:
        CheckpointError: a folder that is no pipeline, or a damaged one.
        ConfigError: a model with hybrid layers: its past is a state already, nothing can be learnt from it here.
    """
    folder = pipeline_folder(name)
    on_meta = torch.device(device).type == "meta"
    if on_meta:
        with torch.device("meta"):
            model = CausalWanTransformer3DModel(**transformer_config(folder / TRANSFORMER))
    else:
        model = load_transformer(folder / TRANSFORMER)
    plan = str(model.config.layer_plan)
    if HybridSpec.letter in plan:
        raise ConfigError(
            f"The teacher '{name}' has hybrid layers (plan {plan}), but a teacher is a softmax model: give the model "
            "that it was converted from."
        )
    stored = model.compute_dtype
    if not on_meta:
        model = cast_model(model, torch.float32).to(device)
    own_window = model.config.window
    model = with_window(model, _frames(window, own_window)).eval().requires_grad_(False)
    return Teacher(folder, model, load_settings(folder), stored, own_window)


def with_window(model: CausalWanTransformer3DModel, window: int | None) -> CausalWanTransformer3DModel:
    """The same weights (shared) in a model whose softmax layers see ``window`` frames (None: the whole past).

    Raises:
        ConfigError: a window that holds no block.
    """
    if window == model.config.window:
        return model
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    settings |= {"window": window, "sink": settings["sink"] if window is not None else 0}
    with torch.device("meta"):
        other = CausalWanTransformer3DModel(**settings)
    other.load_state_dict(model.state_dict(), assign=True)
    return other.train(model.training)


def make_student(teacher: Teacher, spec: StudentSpec) -> CausalWanTransformer3DModel:
    """A hybrid model that shares the teacher's frozen weights; its new parameters are its own.

    Raises:
        ConfigError: a plan or a window that does not fit, or layers that ``aligned`` has not trained.
        CheckpointError: ``aligned`` is no export, or one of another teacher.
    """
    layers = len(teacher.model.config.layer_plan)
    plan = hybrid_plan(spec.plan, layers)
    student = convert(
        with_window(teacher.model, _frames(spec.window, teacher.own_window)),
        plan,
        state_rank=spec.state_rank,
        ffn_rank=spec.ffn_rank,
        low_rank_alpha=spec.low_rank_alpha,
        ffn_rank_layers=spec.ffn_rank_layers,
        seed=spec.seed,
    ).model
    if spec.aligned is not None and not student.patch_embedding.weight.is_meta:
        take_aligned(student, load_aligned(spec.aligned, teacher))
    return student.eval()


def hybrid_plan(plan: Plan | None, layers: int) -> str:
    """A plan in letters, whatever way it was given; None makes every layer hybrid.

    Raises:
        ConfigError: a plan that does not fit so many layers, or one without a hybrid layer.
    """
    if plan is None:
        return HybridSpec.letter * layers
    letters = parse_plan(plan, layers) if isinstance(plan, str) else plan_of(plan, layers)
    if HybridSpec.letter not in letters:
        raise ConfigError(f"The plan {letters} has no hybrid layer, so nothing would train; name one.")
    return letters


def hybrid_layers(plan: str) -> list[int]:
    """Indices of the hybrid layers of a plan."""
    return [i for i, letter in enumerate(plan) if letter == HybridSpec.letter]


def load_aligned(folder: str | Path, teacher: Teacher) -> CausalWanTransformer3DModel:
    """The model of a stage-1 export, checked to be made of this teacher.

    Raises:
        CheckpointError: no export, a damaged one, or one of another teacher.
    """
    aligned = load_transformer(Path(folder) / TRANSFORMER, dtype=torch.float32)
    own, theirs = teacher.model.state_dict(), aligned.state_dict()
    same = all(name in theirs and _same(tensor, theirs[name]) for name, tensor in own.items())
    if not same:
        raise CheckpointError(
            f"The aligned layers in '{folder}' belong to another teacher than '{teacher.folder}': the weights that "
            "stage 1 leaves alone differ; align this teacher, or give the one that was aligned."
        )
    return aligned


@torch.no_grad()
def take_aligned(student: CausalWanTransformer3DModel, aligned: CausalWanTransformer3DModel) -> None:
    """Fill the stage-1 parameters of all the student's hybrid layers, in place.

    Raises:
        ConfigError: a layer that is not hybrid in ``aligned``.
    """
    there = set(hybrid_layers(aligned.config.layer_plan))
    lacking = [i for i in hybrid_layers(student.config.layer_plan) if i not in there]
    if lacking:
        raise ConfigError(
            f"Layers {lacking} are to be hybrid, but stage 1 has aligned layers {sorted(there)} only; align them too, "
            "or leave them out of the plan."
        )
    source = aligned.state_dict()
    for name, tensor in trained_tensors(student, 1).items():
        tensor.copy_(source[name])


def _frames(window: Window, own: int | None) -> int | None:
    if isinstance(window, int):
        return window
    return own if window == "model" else None


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.cpu(), theirs.cpu())


def export_student(
    student: CausalWanTransformer3DModel, teacher: Teacher, folder: Path, *, settings: GenerationSettings
) -> None:
    """A pipeline's folder with the student: frozen weights as stored, what trained in float32, codec and text copied.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with torch.device("meta"):
        shell = CausalWanTransformer3DModel.from_config(student.config)
    tensors = {
        name: tensor.detach().cpu()
        if part_of(name, 2)
        else tensor.detach().cpu().to(parameter_dtype(name, teacher.stored))
        for name, tensor in student.state_dict().items()
    }
    shell.load_state_dict(tensors, assign=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shell.save_pretrained(folder / TRANSFORMER)
        for part in (CODEC, TEXT):
            _copy_once(teacher.folder / part, folder / part)
        generation = {"text": read_json(teacher.folder / GENERATION).get("text"), **settings.to_mapping()}
        (folder / GENERATION).write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"The export '{folder}' could not be written ({error}); make room and go on.") from error


def student_settings(teacher: Teacher, student: CausalWanTransformer3DModel) -> GenerationSettings:
    """The teacher's way of sampling, with the student's window."""
    if student.config.window == teacher.own_window:
        return teacher.settings
    return replace(teacher.settings, window=student.config.window)


def _copy_once(source: Path, target: Path) -> None:
    """Unless it is there; under another name first, so that a copy cut short is not taken for a whole one."""
    if target.exists():
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)
