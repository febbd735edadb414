"""Every kind of file that a user can hand over: one that is whole, and the code that reads it.

``write_originals`` makes a folder of each. A kind's ``load`` reads from such a folder as the commands do, and returns
what was read (tensors, records, frames), so that a damaged file that loads can be held against the whole one.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from arl2.checkpoints.describe import describe
from arl2.checkpoints.layer_choice import read_ranking
from arl2.checkpoints.reading import read_weights
from arl2.errors import Arl2Error
from arl2.evaluation.goldens import packaged_goldens, read_goldens
from arl2.evaluation.suites.folder import folder_subject
from arl2.model.reward_model import RewardModel
from arl2.model.transformer import CausalWanTransformer3DModel
from arl2.pipeline.footprint import parameters_of
from arl2.pipeline.parts import find_parts, load_text_encoder, load_vae
from arl2.pipeline.pipeline import ARL2Pipeline
from arl2.pipeline.published import read_published_config
from arl2.rollout.settings import GenerationSettings
from arl2.serving.live.journal import JournalEntry
from arl2.serving.live.store import StreamRecord, StreamStore
from arl2.serving.live.wire import Command, Point, StreamRequest
from arl2.serving.manifest import Manifest, read_listing, read_manifest, remove_manifest, write_listing, write_manifest
from arl2.serving.outputs.hls_playlist import Playlist, Segment, read_playlist
from arl2.serving.prompts_file import read_image_folder, read_prompts_file
from arl2.serving.script import read_script
from arl2.shapes.codec import GroupCodec, load_group_codec
from arl2.shapes.prompts.text import ShapesText
from arl2.streams.conditioning import image_prefix, video_prefix
from arl2.text.embedding_cache import EmbeddingCache, embedding_key
from arl2.text.tokenizer import build_word_tokenizer
from arl2.training.clips.dataset import Clip, ClipSet
from arl2.training.clips.folder import ClipIndex
from arl2.training.clips.videos import CaptionedVideo, plan_videos, read_captioned
from arl2.training.clips.writing import ClipWriter
from arl2.training.engine.checkpoint import RunState, checkpoint_tensors, load_checkpoint, save_checkpoint
from arl2.training.engine.ema import WeightAverage
from arl2.training.engine.optimizer import Optimizers
from arl2.training.engine.progress import read_metrics
from arl2.training.engine.start import resolved_settings
from arl2.training.engine.task import ParameterGroup
from arl2.video.images import read_image
from arl2.video.reading import read_video, video_info
from arl2.video.tiny_codec import TinyCodec
from arl2.video.writers import open_video
from fuzz_changes import BYTES, JSON, JSON_LINES, TEXT, YAML, Change

PROMPT = "a red circle moves right on navy"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: as the table has it.
        folder: of the originals, the part that this kind needs.
        files: pattern of the files that are changed, inside the folder; one a case.
        changes: what may befall them.
        load: reads from a copy of the folder.
        detects: whether the format lets every change of a value be seen, by checksums.
    """

    name: str
    folder: str
    files: str
    changes: tuple[Change, ...]
    load: Callable[[Path], Any]
    detects: bool = False


def fuzz_pipeline(*, block_frames: int = 3) -> ARL2Pipeline:
    """Random weights: a hybrid and a softmax layer with window and sink, pictures of 32 x 32, a reward model."""
    torch.manual_seed(0)
    text = ShapesText.build(width=16)
    sizes: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "freq_dim": 16, "text_dim": 16, "sink": 1}
    model = CausalWanTransformer3DModel(
        "HS", 2, 12, 48, text_len=text.length, window=9, block_frames=block_frames, **sizes
    )
    codec = GroupCodec(latent_channels=4, width=8, deep_width=8)
    codec.init_weights(torch.Generator().manual_seed(0))
    reward = RewardModel(4, block_frames, 4, 4, words=text.length, text_width=16, features=8, depth=1, space=8)
    settings = GenerationSettings(steps=(1000, 500), window=9, height=32, width=32, num_frames=9)
    pipe = ARL2Pipeline(model.eval(), codec.eval(), text, settings, reward.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _moving_square(frames: int = 10, side: int = 32) -> np.ndarray:
    video = np.full((frames, side, side, 3), (30, 40, 90), np.uint8)
    for i in range(frames):
        video[i, 8:20, i + 2 : i + 14] = (220, 60, 50)
    return video


def _write_video(path: Path, frames: np.ndarray) -> None:
    with open_video(path, fps=8, settings={"prompt": PROMPT}) as video:
        video.write(frames)


def _write_published(base: Path) -> None:
    """A base folder in the layout of diffusers, and single files of the other layouts, all of the smallest sizes."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.5],
    )
    vae.save_pretrained(base / "vae")
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    UMT5EncoderModel(UMT5Config(**sizes, relative_attention_num_buckets=8)).save_pretrained(base / "text_encoder")
    build_word_tokenizer(("a", "cat", "runs"), length=12).save_pretrained(base / "tokenizer")
    tiny = TinyCodec(1, 4, (4, 4, 4, 4), (8, 6, 5, 4))
    torch.save({name: tensor.clone() for name, tensor in tiny.state_dict().items()}, base / "tiny.pth")


def _write_weights(folder: Path, model: CausalWanTransformer3DModel) -> None:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    content = {"generator": tensors, "generator_ema": other, "step": 3, "critic": {"weights": {"w": torch.ones(2)}}}
    for name in ("new", "old", "shards", "safe"):
        (folder / name).mkdir(parents=True)
        model.save_config(folder / name)
    torch.save(content, folder / "new" / "model.pt")
    torch.save(content, folder / "old" / "model.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "safe" / "model.safetensors")
    model.save_pretrained(folder / "shards", max_shard_size="30KB")


def _write_texts(folder: Path) -> None:
    folder.mkdir()
    requests = [{"prompt": PROMPT, "seed": 3, "frames": 9, "file": "a.mp4"}, {"prompt": "a cat", "seed": 2**63}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in requests))
    (folder / "prompts.txt").write_text(f"# prompts\n{PROMPT}\na blue square bounces\n")
    (folder / "script.yaml").write_text(
        f'- {{at: 0, prompt: {PROMPT}}}\n- {{at: "0:05", prompt: a blue square, mode: cut}}\n'
        "- at: 200 frames\n  prompt: a green triangle moves up\n"
    )
    (folder / "config.yaml").write_text(
        "denoising_step_list: [1000, 750, 500, 250]\nwarp_denoising_step: true\nnum_frame_per_block: 3\n"
        "timestep_shift: 5.0\nmodel_kwargs:\n  local_attn_size: 12\n  sink_size: 3\nimage_or_video_shape:\n"
        "- 1\n- 21\n- 16\n- 60\n- 104\n"
    )
    settings = {"loop": {"steps": 7, "learning_rate": 0.001}, "clips": 20, "codec": "a"}
    (folder / "recipe.json").write_text(json.dumps(settings))
    (folder / "recipe.toml").write_text("clips = 20\ncodec = 'a'\n[loop]\nsteps = 7\nlearning_rate = 0.001\n")
    (folder / "ranking.json").write_text(json.dumps({"ranking": [2, 0, 1], "layers": [{"layer": 2, "loss": 0.5}]}))
    write_listing(folder, [{"file": "a.mp4", "prompt": PROMPT, "seed": 1}, {"file": "b.mp4", "prompt": "b", "seed": 2}])
    for index in range(2):
        (folder / f"segment-{index:08d}.ts").write_bytes(b"video")
    for index in range(2):
        Playlist(folder, 2).add(Segment("segment-00000000.ts", 1.5))
        playlist = Playlist(folder, 2)
        playlist.add(Segment("segment-00000000.ts", 1.5))
        playlist.add(Segment("segment-00000001.ts", 1.0, cut=bool(index)))
    records = [{"step": step, "loss": 0.5, "scores": {"motion": 0.1}} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    frames = _moving_square()
    image = Image.fromarray(frames[0])
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        image.save(folder / name)
    Image.fromarray(frames[0, :, :, 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    for name in ("a.mp4", "a.gif", "a.webp", "a.y4m", "pngs"):
        (folder / "videos").mkdir(exist_ok=True)
        _write_video(folder / "videos" / name, frames)
    listed = folder / "listed"
    (listed / "1-1").mkdir(parents=True)
    image.save(listed / "1-1" / "a.png")
    (listed / "target_crop_info_1-1.json").write_text(json.dumps([{"file_name": "a.png", "caption": "a", "x": 1}]))
    captioned = folder / "captioned"
    captioned.mkdir()
    _write_video(captioned / "a.mp4", frames)
    shutil.copytree(captioned, folder / "captioned-lines")
    shutil.copytree(captioned, folder / "scored")
    (captioned / "captions.csv").write_text(f"file,caption\na.mp4,{PROMPT}\n")
    (folder / "captioned-lines" / "captions.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": PROMPT}) + "\n")
    (folder / "scored" / "manifest.jsonl").write_text(json.dumps({"file": "a.mp4", "prompt": PROMPT}) + "\n")
    plan_videos([CaptionedVideo(captioned / "a.mp4", PROMPT)], folder / "planned", video_frames=5, fps=8, most=2)
    (folder / "made").mkdir()
    _write_video(folder / "made" / "a.mp4", frames)
    video = folder / "made" / "a.mp4"
    write_manifest(video, _manifest(video))


def _manifest(video: Path) -> Manifest:
    return Manifest(
        file=video.name,
        file_bytes=video.stat().st_size,
        prompt=PROMPT,
        seed=3,
        frames=12,
        settings={"steps": [1000, 500]},
        model="shapes",
        model_hash="0" * 64,
        latents_sha256="1" * 64,
        seconds=1.5,
        arl2="1",
    )


def _write_clips(folder: Path) -> None:
    index = ClipIndex(clips=4, shard_clips=2, latents=(3, 4, 2, 5), text_width=6, facts={"codec": "c"})
    writer, draw = ClipWriter(folder, index), torch.Generator().manual_seed(0)
    for shard in writer.missing():
        writer.write(
            shard,
            [
                Clip(torch.randn(3, 4, 2, 5, generator=draw), torch.randn(2, 6, generator=draw), f"clip {number}", 7)
                for number in index.clips_of(shard)
            ],
        )


def _trained() -> tuple[dict[str, nn.Parameter], WeightAverage, Optimizers]:
    torch.manual_seed(0)
    parameters = {"layer.weight": nn.Parameter(torch.randn(4, 3)), "layer.bias": nn.Parameter(torch.randn(4))}
    optimizer = Optimizers([ParameterGroup(parameters)], name="adamw", learning_rate=0.1, adam_betas=(0.9, 0.99))
    for parameter in parameters.values():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return parameters, WeightAverage(parameters, 0.99), optimizer


def write_originals(root: Path) -> None:
    """A folder for each group of kinds, with files that are whole."""
    pipe = fuzz_pipeline()
    pipe.save_pretrained(root / "pipeline" / "model")
    _write_published(root / "published")
    _write_weights(root / "weights", pipe.transformer)
    _write_texts(root / "texts")
    _write_pictures(root / "pictures")
    _write_clips(root / "clips")
    stream = pipe.stream(PROMPT, seed=3)
    next(stream)
    (root / "snapshot").mkdir()
    stream.save(root / "snapshot" / "stream.arl2")
    shutil.copytree(packaged_goldens(), root / "goldens")
    _write_store(root / "store")
    cache_folder = root / "embeddings"
    EmbeddingCache(cache_folder).write(_cache_key(), torch.arange(12.0).reshape(3, 4))
    parameters, average, optimizer = _trained()
    tensors = checkpoint_tensors(parameters, average, optimizer, {})
    save_checkpoint(root / "run", RunState(5, 1.5, {"loop": {"steps": 7}}, 4, {"loss": 0.5}), tensors, keep=1)


def _write_store(root: Path) -> None:
    """A server's store: a stream, three commands, two points."""
    store = StreamStore(root, shared=True)
    request = StreamRequest(prompt=PROMPT, seed=3, options={"window": 9})
    store.write(StreamRecord(id="a", created=5.0, request=request, model_hash="f" * 64, width=64, height=64, fps=16))
    for number in (1, 2, 3):
        store.append("a", JournalEntry(number, 2 * number, Command(action="prompt", key="k", prompt=PROMPT)))
    for block in (4, 8):
        store.add_point("a", Point(block=block, frame=12 * block, index=block, prompt=PROMPT, made=6.0), b"x" * 999)


def _stored(folder: Path) -> Any:
    """What a server does with it at its start and when the stream wakes; older points stand in for damaged ones."""
    store = StreamStore(folder, shared=True)
    newest = store.newest_point("a")
    if newest is None or newest[0].block != 8:
        raise Arl2Error(f"{folder}: an older point is used.")
    entries = store.entries("a", since=0)
    if len(entries) != 3:
        raise Arl2Error(f"{folder}: the last command was never applied.")
    return store.read("a"), newest, entries


def _cache_key() -> str:
    return embedding_key((1, 2, 3), encoder="e", dtype=torch.float32)


def _weights(path: Path) -> Any:
    file = read_weights(path)
    described = describe(path, height=64, width=64)
    if path.suffix != ".pt":
        parameters_of(path)  # of a .pt it is told by the file's size
    return file.tensors, described.config, described.parameters, described.unused


def _generated(folder: Path) -> Any:
    pipe = ARL2Pipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    sizes = {"num_frames": 5, "height": 32, "width": 32}
    return pipe(PROMPT, seed=1, first_block_candidates=2, output_type="pt", **sizes).frames


def _settings(folder: Path) -> Any:
    pipe = ARL2Pipeline.from_pretrained(folder / "model")
    return pipe.settings, pipe.check()


def _published_codec(folder: Path) -> Tensor:
    codec = load_vae(find_parts(folder).vae, dtype=torch.float32)
    return codec.decode(torch.zeros(1, 4, 2, 2, 2))


def _published_text(folder: Path) -> Tensor:
    parts = find_parts(folder)
    return load_text_encoder(parts.text_encoder, parts.tokenizer).encode(["a cat runs"])


def _snapshot(folder: Path) -> Any:
    return next(ready_pipeline().resume(folder / "stream.arl2")).latents


@cache
def ready_pipeline(block_frames: int = 3) -> ARL2Pipeline:
    return fuzz_pipeline(block_frames=block_frames)


def _clips(folder: Path) -> Any:
    clips = ClipSet.open(folder)
    return [clips[number] for number in range(len(clips))], clips.facts


def _embeddings(folder: Path) -> Any:
    found = EmbeddingCache(folder).read(_cache_key(), shape=(3, 4), dtype=torch.float32)
    return _or_refused(found, folder)


def _or_refused(found: Any, folder: Path) -> Any:
    """What is quietly made again counts as refused."""
    if found is None:
        raise Arl2Error(f"{folder}: made again.")
    return found


def _checkpoint(folder: Path) -> Any:
    parameters, average, optimizer = _trained()
    state = load_checkpoint(folder / "step-000000005", parameters=parameters, average=average, optimizer=optimizer)
    return state, dict(parameters), average.tensors, [optimizer.state_of(one) for one in parameters.values()]


def _video(name: str) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        path = folder / "videos" / name
        return read_video(path, max_frames=200), video_info(path), video_prefix(ready_pipeline(), path).latents

    return load


def _image(name: str) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        return np.asarray(read_image(folder / name)), image_prefix(ready_pipeline(1), folder / name).latents

    return load


def _manifests(folder: Path) -> Any:
    found = read_manifest(folder / "made" / "a.mp4")
    remove_manifest(folder / "made" / "a.mp4")
    return _or_refused(found, folder)


def _captions(folder: Path) -> Any:
    return [(one.path.name, one.caption) for one in read_captioned(folder)]


def _plan(folder: Path) -> Any:
    videos = [CaptionedVideo(folder / "captioned" / "a.mp4", PROMPT)]
    return plan_videos(videos, folder / "planned", video_frames=5, fps=8, most=2)


def _listing(folder: Path) -> Any:
    write_listing(folder, [{"file": "c.mp4"}])
    return read_listing(folder)


def _recipe(name: str) -> Callable[[Path], Any]:
    return lambda folder: resolved_settings("teacher", None, settings=folder / name)


_MODEL = "model/"
KINDS: tuple[Kind, ...] = (
    Kind(".safetensors of weights", "weights", "safe/model.safetensors", BYTES, lambda f: _weights(f / "safe")),
    Kind(".pt of weights", "weights", "new/model.pt", BYTES, lambda f: _weights(f / "new/model.pt"), detects=True),
    Kind(".pt before torch 1.6", "weights", "old/model.pt", BYTES, lambda f: _weights(f / "old/model.pt")),
    Kind("index of shards", "weights", "shards/*.json", JSON, lambda f: _weights(f / "shards")),
    Kind("transformer config", "pipeline", _MODEL + "transformer/config.json", JSON, _generated),
    Kind("transformer weights", "pipeline", _MODEL + "transformer/*.safetensors", BYTES, _generated),
    Kind("codec config", "pipeline", _MODEL + "codec/config.json", JSON, _generated),
    Kind("codec weights", "pipeline", _MODEL + "codec/*.safetensors", BYTES, _generated),
    Kind("tokenizer.json", "pipeline", _MODEL + "text/tokenizer/tokenizer.json", JSON, _generated),
    Kind("tokenizer_config.json", "pipeline", _MODEL + "text/tokenizer/tokenizer_config.json", JSON, _generated),
    Kind("text encoder config", "pipeline", _MODEL + "text/text_encoder/config.json", JSON, _generated),
    Kind("reward model config", "pipeline", _MODEL + "verifier/config.json", JSON, _generated),
    Kind("generation.json, generating", "pipeline", _MODEL + "generation.json", JSON, _generated),
    Kind("generation.json, its settings", "pipeline", _MODEL + "generation.json", JSON, _settings),
    Kind("codec in its own folder", "pipeline", _MODEL + "codec/*", BYTES, lambda f: _parts(f / "model/codec")),
    Kind("published VAE config", "published", "vae/config.json", JSON, _published_codec),
    Kind("published VAE weights", "published", "vae/*.safetensors", BYTES, _published_codec),
    Kind("UMT5 config", "published", "text_encoder/config.json", JSON, _published_text),
    Kind("UMT5 weights", "published", "text_encoder/*.safetensors", BYTES, _published_text),
    Kind("published tokenizer", "published", "tokenizer/*.json", JSON, _published_text),
    Kind("tiny decoder .pth", "published", "tiny.pth", BYTES, lambda f: _tiny(f / "tiny.pth"), detects=True),
    Kind("golden files", "goldens", "*.safetensors", BYTES, lambda f: read_goldens(f)),
    Kind("snapshot", "snapshot", "stream.arl2", BYTES, _snapshot, detects=True),
    Kind("prompt embeddings", "embeddings", "*.safetensors", BYTES, _embeddings, detects=True),
    Kind("training checkpoint", "run", "*/state.safetensors", BYTES, _checkpoint),
    Kind("training state", "run", "*/run.json", JSON, _checkpoint),
    Kind("metrics.jsonl", "texts", "metrics.jsonl", JSON_LINES, lambda f: read_metrics(f / "metrics.jsonl")),
    Kind("clips.json", "clips", "clips.json", JSON, _clips),
    Kind("shard of clips", "clips", "shards/*.arrow", BYTES, _clips, detects=True),
    Kind("marker of a shard", "clips", "shards/*.json", JSON, _clips),
    Kind("recipe .json", "texts", "recipe.json", JSON, _recipe("recipe.json")),
    Kind("recipe .toml", "texts", "recipe.toml", TEXT, _recipe("recipe.toml")),
    Kind("ranking of layers", "texts", "ranking.json", JSON, lambda f: read_ranking(f / "ranking.json")),
    Kind("published YAML config", "texts", "config.yaml", YAML, lambda f: read_published_config(f / "config.yaml")),
    Kind("YAML script", "texts", "script.yaml", YAML, lambda f: read_script(f / "script.yaml")),
    Kind("prompts .jsonl", "texts", "prompts.jsonl", JSON_LINES, lambda f: read_prompts_file(f / "prompts.jsonl")),
    Kind("prompts .txt", "texts", "prompts.txt", TEXT, lambda f: read_prompts_file(f / "prompts.txt")),
    Kind("manifest.jsonl", "texts", "manifest.jsonl", JSON_LINES, _listing),
    Kind("HLS playlist", "texts", "index.m3u8", TEXT, lambda f: read_playlist(f, longest=2)),
    Kind("manifest of a video", "pictures", "made/a.json", JSON, _manifests),
    Kind("list of images", "pictures", "listed/*.json", JSON, lambda f: read_image_folder(f / "listed")),
    Kind("captions.csv", "pictures", "captioned/captions.csv", TEXT, lambda f: _captions(f / "captioned")),
    Kind(
        "captions.jsonl", "pictures", "captioned-lines/*.jsonl", JSON_LINES, lambda f: _captions(f / "captioned-lines")
    ),
    Kind("videos to score", "pictures", "scored/*.jsonl", JSON_LINES, lambda f: folder_subject(f / "scored", "scored")),
    Kind("counted videos", "pictures", "planned/*.json", JSON, _plan),
    Kind("image .png", "pictures", "a.png", BYTES, _image("a.png"), detects=True),
    Kind("image .png, 16 bits", "pictures", "grey16.png", BYTES, _image("grey16.png"), detects=True),
    Kind("image .jpg", "pictures", "a.jpg", BYTES, _image("a.jpg")),
    Kind("image .webp", "pictures", "a.webp", BYTES, _image("a.webp")),
    Kind("image .bmp", "pictures", "a.bmp", BYTES, _image("a.bmp")),
    Kind("image .tiff", "pictures", "a.tiff", BYTES, _image("a.tiff")),
    Kind("video .mp4", "pictures", "videos/a.mp4", BYTES, _video("a.mp4")),
    Kind("video .gif", "pictures", "videos/a.gif", BYTES, _video("a.gif")),
    Kind("video .webp", "pictures", "videos/a.webp", BYTES, _video("a.webp")),
    Kind("video .y4m", "pictures", "videos/a.y4m", BYTES, _video("a.y4m")),
    Kind("record of a live stream", "store", "streams/a/stream.json", JSON, _stored),
    Kind("command of a live stream", "store", "streams/a/journal/*.json", JSON, _stored),
    Kind("record of a point", "store", "streams/a/points/*8.json", JSON, _stored),
    Kind("snapshot of a point", "store", "streams/a/points/*8.*.arl2", BYTES, _stored, detects=True),
    Kind("PNG of a folder", "pictures", "videos/pngs/*.png", BYTES, _video("pngs"), detects=True),
    Kind("settings of PNGs", "pictures", "videos/pngs/settings.json", JSON, _video("pngs")),
)


def _parts(folder: Path) -> Any:
    return load_group_codec(folder).decode(torch.zeros(1, 4, 1, 2, 2))


def _tiny(path: Path) -> Tensor:
    return TinyCodec.from_published(path).decode(torch.zeros(1, 4, 2, 2, 2))
