"""VAE and text encoder in files of their own, as ComfyUI and the first release have them: the same video as from a
folder."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arl2.cli.main import main
from arl2.errors import CheckpointError, ConfigError
from arl2.model.registry import CARDS
from arl2.pipeline.options import ModelSource, SamplingOptions
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.planning import plan_source
from arl2.pipeline.resolve import resolve_source
from arl2.text.umt5 import UMT5Text
from arl2.text.umt5_files import open_encoder_file
from checkpoints.eight_bits import eight_bits
from rollout.published_folders import OWN, diffusers_base, original_base, student_file
from support import relative, tiny_model
from text.tiny_umt5 import spiece, tiny_encoder, tiny_tokenizer
from video.tiny_wan import narrow_vae, original_tensors, tiny_vae

SIZE = {"height": 32, "width": 48, "num_frames": 9, "seed": 3, "steps": (1000, 500), "output_type": "latent"}
SPIECE = torch.frombuffer(bytearray(spiece()), dtype=torch.uint8)


def comfy_text(path: Path, kind: torch.dtype | None = None, *, scaled: bool = False) -> Path:
    """transformers' names in one file, the tokenizer's bytes beside them; in 8 bits if ``kind`` is given."""
    tensors = {
        name: x.clone() for name, x in tiny_encoder().state_dict().items() if name != "encoder.embed_tokens.weight"
    }
    if kind is not None:
        tensors = {name.replace("block.", "blocks."): x for name, x in tensors.items()}
        tensors = eight_bits(tensors, kind, scaled="scale_weight" if scaled else None)
        tensors = {name.replace("blocks.", "block."): x for name, x in tensors.items()}
        if scaled:
            tensors["scaled_fp8"] = torch.zeros(0, dtype=kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, "spiece_model": SPIECE}, path)
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    diffusers_base(folder / "diffusers")
    original_base(folder / "original")
    student_file(folder / "student.pt")
    save_file(original_tensors(narrow_vae()), folder / "wan_2.1_vae.safetensors")
    comfy_text(folder / "comfy" / "umt5_xxl_fp16.safetensors")
    tiny_tokenizer().save_pretrained(folder / "comfy" / "umt5-xxl")
    comfy_text(folder / "alone" / "umt5.safetensors")
    return folder


def latents(model: Path, **parts: Path) -> torch.Tensor:
    pipe = ARL2Pipeline.from_pretrained(model, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat runs", **SIZE).frames


@pytest.fixture(scope="module")
def expected(disk: Path) -> torch.Tensor:
    return latents(disk / "student.pt", base=disk / "diffusers")


@pytest.mark.parametrize(
    ("vae", "text_encoder"),
    [
        ("wan_2.1_vae.safetensors", "comfy/umt5_xxl_fp16.safetensors"),
        ("wan_2.1_vae.safetensors", "alone/umt5.safetensors"),
        ("original/Wan2.1_VAE.pth", "original/models_t5_umt5-xxl-enc-bf16.pth"),
        ("diffusers/vae", "diffusers/text_encoder"),
        ("wan_2.1_vae.safetensors", None),
        (None, "comfy/umt5_xxl_fp16.safetensors"),
    ],
)
def test_parts_of_their_own_give_the_same_video(
    disk: Path, expected: torch.Tensor, vae: str | None, text_encoder: str | None
) -> None:
    parts = {name: disk / file for name, file in (("vae", vae), ("text_encoder", text_encoder)) if file is not None}
    base = {"base": disk / "diffusers"} if len(parts) < 2 else {}
    assert torch.equal(latents(disk / "student.pt", **parts, **base), expected)


def test_parts_over_those_of_a_base_and_of_a_saved_pipeline(disk: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    base = Path(shutil.copytree(disk / "diffusers", tmp_path / "base"))
    for part in ("vae", "text_encoder"):
        shutil.rmtree(base / part)
    parts = {"vae": disk / "wan_2.1_vae.safetensors", "text_encoder": disk / "comfy" / "umt5_xxl_fp16.safetensors"}
    assert torch.equal(latents(disk / "student.pt", base=base, **parts), expected)
    pipe = ARL2Pipeline.from_pretrained(disk / "student.pt", base=disk / "diffusers")
    pipe.save_pretrained(tmp_path / "saved")
    for name in ("codec/diffusion_pytorch_model.safetensors", "text/text_encoder/model.safetensors"):
        (tmp_path / "saved" / name).write_bytes(b"not read")
    assert torch.equal(latents(tmp_path / "saved", **parts), expected)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_text_encoder_in_8_bits(disk: Path, tmp_path: Path, kind: torch.dtype, scaled: bool) -> None:
    path = comfy_text(tmp_path / "umt5_fp8.safetensors", kind, scaled=scaled)
    weights = open_encoder_file(path)
    full = open_encoder_file(disk / "comfy" / "umt5_xxl_fp16.safetensors")
    built = weights.build(device=torch.device("cpu"), dtype=torch.float32).state_dict()
    stored = load_file(path)
    for name, x in built.items():
        scale = stored.get(f"{name.removesuffix('weight')}scale_weight", torch.ones(()))
        held = stored.get(name, stored["shared.weight"])
        assert torch.equal(x, held.float() * scale)
    assert weights.fingerprint(torch.float32) != full.fingerprint(torch.float32)
    exact = type(full)(full.config, {name: built[name] for name in full.tensors})
    assert weights.fingerprint(torch.float32) == exact.fingerprint(torch.float32)
    one, other = (
        UMT5Text.from_wan_original(file, disk / "comfy" / "umt5-xxl", torch_dtype=torch.float32, length=12).encode(
            ["a cat"]
        )
        for file in (path, disk / "comfy" / "umt5_xxl_fp16.safetensors")
    )
    assert 0 < relative(one, other) < 0.5


def test_a_scale_of_a_text_encoder_that_is_missing(tmp_path: Path) -> None:
    path = comfy_text(tmp_path / "umt5_fp8.safetensors", torch.float8_e4m3fn, scaled=True)
    tensors = load_file(path)
    del tensors["encoder.block.0.layer.0.SelfAttention.q.scale_weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match=r"1 have no scale, first encoder\.block\.0\.layer\.0\.SelfAttention\.q"):
        open_encoder_file(tmp_path / "cut.safetensors")


def test_the_command_line_takes_them(disk: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    words = ["generate", "a cat runs", "--model", str(disk / "student.pt"), "--frames", "9", "--height", "32"]
    words += ["--width", "48", "--seed", "3", "--steps", "1000,500", "-o", str(tmp_path / "cat.mp4")]
    words += ["--vae", str(disk / "wan_2.1_vae.safetensors"), "--latents", str(tmp_path / "cat.safetensors")]
    assert main([*words, "--text-encoder", str(disk / "comfy" / "umt5_xxl_fp16.safetensors")]) == 0
    (found,) = load_file(tmp_path / "cat.safetensors").values()
    assert torch.equal(found.reshape(expected.shape), expected)


def test_a_folder_is_written_from_them(disk: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    words = ["export", str(disk / "student.pt"), "--vae", str(disk / "wan_2.1_vae.safetensors")]
    words += ["--text-encoder", str(disk / "comfy" / "umt5_xxl_fp16.safetensors"), "-o", str(tmp_path / "whole")]
    assert main(words) == 0
    assert relative(latents(tmp_path / "whole"), expected) < 1e-5


def test_a_file_that_is_not_there_is_named(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--vae", "--text-encoder", "--weights"):
        assert main(["generate", "a cat", option, "nofile.pt", "--base", str(disk / "diffusers")]) == 2
        assert f"There is no 'nofile.pt' ({option}); check the path." in capsys.readouterr().err
    assert main(["generate", "a cat", "--model", "nofile.pt"]) == 2
    assert "There is no file or folder 'nofile.pt'" in capsys.readouterr().err


def test_what_lacks_is_named(disk: Path, tmp_path: Path) -> None:
    student_alone = disk / "student.pt"
    with pytest.raises(CheckpointError, match=r"give --base, .*, or both with --text-encoder and --vae"):
        latents(student_alone, vae=disk / "wan_2.1_vae.safetensors")
    lonely = Path(shutil.copy(disk / "original" / "models_t5_umt5-xxl-enc-bf16.pth", tmp_path / "umt5.pth"))
    with pytest.raises(CheckpointError, match=r"Found no tokenizer for '.*umt5\.pth': its folder has no"):
        latents(student_alone, vae=disk / "wan_2.1_vae.safetensors", text_encoder=lonely)
    with pytest.raises(ConfigError, match="has no UMT5 text encoder; leave --text-encoder out"):
        ARL2Pipeline.from_pretrained("shapes", text_encoder=lonely)


def test_a_named_model_needs_nothing_else_where_all_parts_are_given(
    disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    parts = {"vae": disk / "wan_2.1_vae.safetensors", "text_encoder": disk / "comfy" / "umt5_xxl_fp16.safetensors"}
    found = resolve_source(ModelSource(model="causal-forcing", weights=disk / "student.pt", **parts))
    assert (found.weights.path, found.base, found.is_published) == (disk / "student.pt", None, True)
    assert found.settings == CARDS["causal-forcing"].settings
    with pytest.raises(CheckpointError, match="arl2 download causal-forcing"):
        resolve_source(ModelSource(model="causal-forcing", **parts))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("wan_2.1_vae.safetensors", "is no transformer but a VAE; give it with --vae"),
        ("comfy/umt5_xxl_fp16.safetensors", "is no transformer but a UMT5 text encoder; give it with --text-encoder"),
    ],
)
def test_a_part_given_as_a_model_is_named(disk: Path, capsys: pytest.CaptureFixture[str], file: str, said: str) -> None:
    assert main(["inspect", str(disk / file)]) == 2
    assert said in capsys.readouterr().err


def test_memory_is_planned_from_them(disk: Path) -> None:
    base = plan_source(resolve_source(ModelSource(model=str(disk / "student.pt"), base=disk / "diffusers")))
    own = plan_source(
        resolve_source(
            ModelSource(
                model=str(disk / "student.pt"),
                vae=disk / "diffusers" / "vae",
                text_encoder=disk / "diffusers" / "text_encoder",
            )
        ),
        SamplingOptions(),
    )
    assert own.parts() == base.parts()


def test_a_folder_of_weights_over_a_base(disk: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    student_file(tmp_path / "run" / "model.pt")
    assert torch.equal(latents(tmp_path / "run", base=disk / "original"), expected)
    with pytest.raises(CheckpointError, match="holds a transformer alone; give --base"):
        latents(tmp_path / "run")


def wide_student(path: Path, channels: int, out: int) -> Path:
    model = tiny_model("SS", **{**OWN, "in_channels": channels, "out_channels": out})
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("channels", "out", "said"),
    [
        (36, 16, "takes latents of 36 channels and gives 16: it is an image-to-video .* only text-to-video"),
        (48, 48, "works on latents of 48 channels and the VAE on 16; give the VAE that it was trained with"),
    ],
)
def test_channels_are_compared_before_the_weights_are_loaded(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, out: int, said: str
) -> None:
    from arl2.checkpoints.stored import StoredWeights

    monkeypatch.setattr(StoredWeights, "transformer", lambda *_: pytest.fail("loaded"))
    place = wide_student(tmp_path / "wide", channels, out)
    with pytest.raises(CheckpointError, match=said):
        ARL2Pipeline.from_pretrained(place, base=disk / "diffusers")
    (place / "config.json").unlink()  # then the tensors tell
    with pytest.raises(CheckpointError, match=said):
        ARL2Pipeline.from_pretrained(place, base=disk / "diffusers")


def test_another_vae_than_a_saved_models(tmp_path: Path, disk: Path) -> None:
    pipe = ARL2Pipeline.from_pretrained(disk / "student.pt", base=disk / "diffusers")
    pipe.save_pretrained(tmp_path / "saved")
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="16 channels and the VAE on 4; give the VAE"):
        ARL2Pipeline.from_pretrained(tmp_path / "saved", vae=tmp_path / "vae")


def test_a_pipeline_of_two_transformers_is_refused(disk: Path, tmp_path: Path, expected: torch.Tensor) -> None:
    base = Path(shutil.copytree(disk / "diffusers", tmp_path / "a14b"))
    shutil.copytree(base / "transformer", base / "transformer_2")
    with pytest.raises(CheckpointError, match=r"a pipeline of two transformers .* give one of Wan 2\.1"):
        ARL2Pipeline.from_pretrained(base)
    assert torch.equal(latents(disk / "student.pt", base=base), expected)  # its VAE and text encoder are Wan 2.1's
