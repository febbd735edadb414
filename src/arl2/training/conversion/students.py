"""The models of a conversion run, built in this one place: the frozen teacher, and the student made from it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from arl2.attention.plan import converted_layers, parse_plan, plan_of
from arl2.attention.state_form import StateForm
from arl2.checkpoints.conversion import convert
from arl2.checkpoints.load import load_transformer, transformer_config
from arl2.errors import CheckpointError, ConfigError
from arl2.files.atomic import atomic_folder, write_atomically
from arl2.files.plain import read_json
from arl2.model.precision import cast_model
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.folder import (
    CODEC,
    GENERATION,
    TEXT,
    TRANSFORMER,
    VERIFIER,
    PipelineFolder,
    load_settings,
    pipeline_folder,
)
from arl2.rollout.settings import GenerationSettings
from arl2.training.conversion.named_teacher import named_sizes, require_folder
from arl2.training.conversion.trainable import trained_parameters

Window = int | Literal["model", "all"]
Plan = str | tuple[int, ...]


# Settings of a converted model that its trained parameters go with, beside the form of its state.
_SHARED = ("layer_plan", "state_rank", "ffn_rank", "low_rank_alpha", "ffn_rank_layers")


@dataclass(frozen=True)
class Teacher:
    """The frozen softmax model.

    Attributes:
        folder: where the parts of its pipeline lie.
        model: in evaluation mode, in the dtype that is computed in.
        settings: how it is sampled.
        own_window: that its file says, whatever ``model`` was given.
    """

    folder: PipelineFolder
    model: CausalWanTransformer3DModel
    settings: GenerationSettings
    own_window: int | None


@dataclass(frozen=True)
class StudentSpec:
    """Which student to make of a teacher.

    Attributes:
        plan: one letter a layer, or the indices of the hybrid layers; None: every layer hybrid.
        state_rank, ffn_rank, low_rank_alpha, ffn_rank_layers: as in ``convert``.
        window: of its softmax layers; ``"model"`` is the teacher's own.
        aligned: folder of an export of stage 1 to start from.
        start_from: folder of an export of stage 2 to start from.
        state_form, state_horizon: as in ``convert``.
        seed: of start values.
    """

    plan: Plan | None = None
    state_rank: int = 0
    ffn_rank: int = 0
    low_rank_alpha: float | None = None
    ffn_rank_layers: Literal["hybrid", "all"] = "hybrid"
    window: Window = "model"
    aligned: str | None = None
    start_from: str | None = None
    state_form: Mapping[str, Any] | None = None
    state_horizon: int | None = None
    seed: int = 0


def load_teacher(
    name: str | Path,
    *,
    device: torch.device | str,
    window: Window = "model",
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """The teacher of an embedded model's name or of a pipeline's folder.

    Args:
        name: also, on ``meta``, a published model or a preset: their sizes are known without files.
        device: where it goes; on ``meta`` only its sizes are read.
        window: latent frames that its softmax layers see; ``"model"`` as in its config, ``"all"`` the whole past.
        dtype: to compute in; a few parameters are float32 in any case.

    Raises:
        CheckpointError: a folder that is no pipeline, or a damaged one.
        ConfigError: a model with converted layers: nothing can be learnt from them here.
    """
    on_meta = torch.device(device).type == "meta"
    if not on_meta:
        require_folder(name)
    named = named_sizes(name) if on_meta else None
    folder = PipelineFolder.of(Path(name)) if named else pipeline_folder(name)
    settings = named.settings if named else load_settings(folder)
    if on_meta:
        with torch.device("meta"):
            model = CausalWanTransformer3DModel(
                **(named.transformer if named else transformer_config(folder.transformer))
            )
    else:
        model = load_transformer(folder.transformer)
    plan = str(model.config.layer_plan)
    if converted_layers(plan):
        raise ConfigError(
            f"The teacher '{name}' has converted layers (plan {plan}), but a teacher is a softmax model: give the "
            "model that it was converted from."
        )
    if not on_meta:
        model = cast_model(model, dtype).to(device)
    own_window = model.config.window
    model = with_window(model, _frames(window, own_window)).eval().requires_grad_(False)
    return Teacher(folder, model, settings, own_window)


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
    """A converted model that shares the teacher's frozen weights; its new parameters are its own, and float32.

    Raises:
        ConfigError: a plan or a window that does not fit, layers that ``aligned`` has not trained, or ``start_from`` of
            another plan, rank or form.
        CheckpointError: ``aligned`` or ``start_from`` is no export, or one of another teacher.
    """
    layers = len(teacher.model.config.layer_plan)
    plan = student_plan(spec.plan, layers)
    student = convert(
        with_window(teacher.model, _frames(spec.window, teacher.own_window)),
        plan,
        state_rank=spec.state_rank,
        ffn_rank=spec.ffn_rank,
        low_rank_alpha=spec.low_rank_alpha,
        ffn_rank_layers=spec.ffn_rank_layers,
        state_form=spec.state_form,
        state_horizon=spec.state_horizon,
        seed=spec.seed,
    ).model
    for parameter in trained_parameters(student, 2).values():
        parameter.data = parameter.data.float()
    if not student.patch_embedding.weight.is_meta:
        if spec.aligned is not None:
            take_aligned(student, load_aligned(spec.aligned, teacher))
        if spec.start_from is not None:
            take_trained(student, _load_of_teacher(spec.start_from, teacher, "trained"))
    return student.eval()


def student_plan(plan: Plan | None, layers: int) -> str:
    """A plan in letters, however it was given; None makes every layer hybrid.

    Raises:
        ConfigError: a plan that does not fit ``layers``, or one that converts none.
    """
    if plan is None:
        return plan_of(range(layers), layers)
    letters = parse_plan(plan, layers) if isinstance(plan, str) else plan_of(plan, layers)
    if not converted_layers(letters):
        raise ConfigError(f"The plan {letters} converts no layer, so nothing would train; name one.")
    return letters


def load_aligned(folder: str | Path, teacher: Teacher) -> CausalWanTransformer3DModel:
    """The model of a stage-1 export, checked to be made of this teacher.

    Raises:
        CheckpointError: no export, a damaged one, or one of another teacher.
    """
    return _load_of_teacher(folder, teacher, "aligned")


@torch.no_grad()
def take_aligned(student: CausalWanTransformer3DModel, aligned: CausalWanTransformer3DModel) -> None:
    """Fill the stage-1 parameters of all the student's converted layers, in place.

    Raises:
        ConfigError: a layer that is not of the same kind in ``aligned``, or was aligned in another form.
    """
    plan, there = str(student.config.layer_plan), str(aligned.config.layer_plan)
    lacking = [i for i in converted_layers(plan) if there[i : i + 1] != plan[i]]
    if lacking:
        raise ConfigError(
            f"Layers {lacking} are to be converted (plan {plan}), but stage 1 has aligned layers "
            f"{converted_layers(there)} only (plan {there}); align them too, or leave them out of the plan."
        )
    ours, theirs = (StateForm.of_config(model.config) for model in (student, aligned))
    if ours != theirs:
        raise ConfigError(
            f"Stage 1 has aligned layers of the form {theirs}, but the student's is {ours}; give both stages the same "
            "state_form."
        )
    source = aligned.state_dict()
    for name, parameter in trained_parameters(student, 1).items():
        parameter.copy_(source[name])


@torch.no_grad()
def take_trained(student: CausalWanTransformer3DModel, trained: CausalWanTransformer3DModel) -> None:
    """Fill all of the student that a conversion trains, in place.

    Raises:
        ConfigError: a model of another plan, other ranks or another form of the state.
    """
    source = trained.state_dict()
    own = trained_parameters(student, 2)
    differing = [name for name in _SHARED if student.config.get(name) != trained.config.get(name)]
    if StateForm.of_config(student.config) != StateForm.of_config(trained.config):
        differing.append("state_form")
    shapes = all(name in source and source[name].shape == parameter.shape for name, parameter in own.items())
    if differing or not shapes:
        said = "; ".join(
            f"{name} is {trained.config.get(name)} there, {student.config.get(name)} here" for name in differing
        )
        raise ConfigError(
            f"start_from holds a student of another kind ({said or 'its trained parameters differ'}); give the "
            "settings that it was made with."
        )
    for name, parameter in own.items():
        parameter.copy_(source[name])


def _load_of_teacher(folder: str | Path, teacher: Teacher, what: str) -> CausalWanTransformer3DModel:
    """An export's model in float32, if what a conversion leaves alone is the teacher's."""
    model = load_transformer(Path(folder) / TRANSFORMER, dtype=torch.float32)
    # A feed-forward with a LoRA keeps the teacher's weights one level deeper.
    theirs = {name.replace(".linear.", "."): tensor for name, tensor in model.state_dict().items()}
    own = teacher.model.state_dict()
    if not all(name in theirs and _same(tensor, theirs[name]) for name, tensor in own.items()):
        raise CheckpointError(
            f"The {what} layers in '{folder}' belong to another teacher than '{teacher.folder}': the weights that a "
            f"conversion leaves alone differ; give the teacher of these layers, or {what} layers of this teacher."
        )
    return model


def _frames(window: Window, own: int | None) -> int | None:
    if isinstance(window, int):
        return window
    return own if window == "model" else None


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.cpu(), theirs.cpu().to(ours.dtype))


def assembled(
    config: Mapping[str, Any], frozen: Mapping[str, Tensor], trained: Mapping[str, Tensor]
) -> CausalWanTransformer3DModel:
    """A model of this configuration from a teacher's tensors and those that were trained; none is copied."""
    with torch.device("meta"):
        model = CausalWanTransformer3DModel.from_config(config)
    tensors = {}
    for name in model.state_dict():
        # A feed-forward with a LoRA keeps the teacher's weights one level deeper.
        source = name if name in frozen else name.replace(".linear.", ".")
        tensors[name] = trained[name] if name in trained else frozen[source]
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def export_student(
    student: CausalWanTransformer3DModel,
    teacher: Teacher,
    folder: Path,
    *,
    settings: GenerationSettings,
    trained: Mapping[str, Tensor] | None = None,
) -> None:
    """A pipeline's folder with the student: frozen weights as stored, what trained in float32; all else copied.

    The frozen weights come from the teacher's file again: those at hand may be rounded to what is computed in.
    ``trained`` are the others, by name; None: all that a conversion adds.

    Raises:
        CheckpointError: the teacher's file cannot be read, or the folder cannot be written.
    """
    trained = trained_parameters(student, 2) if trained is None else trained
    held = {name: x.detach().cpu() for name, x in trained.items()}
    model = assembled(student.config, load_transformer(teacher.folder.transformer).state_dict(), held)
    try:
        with atomic_folder(folder / TRANSFORMER, replace=True, keep=True) as partial:
            model.save_pretrained(partial)
        _copy_once(teacher.folder.codec, folder / CODEC)
        _copy_once(teacher.folder.text, folder / TEXT)
        if teacher.folder.verifier.is_dir():
            _copy_once(teacher.folder.verifier, folder / VERIFIER)
        generation = {"text": read_json(teacher.folder.generation).get("text"), **settings.to_mapping()}
        write_atomically(folder / GENERATION, (json.dumps(generation, indent=1) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"The export '{folder}' could not be written ({error}); make room and resume.") from error


def student_settings(teacher: Teacher, student: CausalWanTransformer3DModel) -> GenerationSettings:
    """The teacher's way of sampling, with the student's window."""
    if student.config.window == teacher.own_window:
        return teacher.settings
    return replace(teacher.settings, window=student.config.window)


def _copy_once(source: Path, target: Path) -> None:
    if not target.exists():
        with atomic_folder(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)
