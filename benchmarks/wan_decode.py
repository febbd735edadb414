"""Streaming decode, random weights of the published sizes: time a latent frame, peak memory, whatever the length.

    python benchmarks/wan_decode.py --codec wan --frames 20 --height 64 --width 64
    python benchmarks/wan_decode.py --codec wan --frames 200 --height 64 --width 64

Each run is a process of its own, whose peak is ``ru_maxrss``, weights and libraries included: two lengths are two runs.
First it checks, on a small picture, that a stream is what decoding at once gives, up to rounding. Video frames are
dropped as they come, as a writer would.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from diffusers import AutoencoderKLWan

from arl2.video.codec import VideoCodec
from arl2.video.tiny_codec import TinyCodec
from arl2.video.wan_codec import WanCodec


def random_codec(name: str, dtype: torch.dtype, base_dim: int) -> WanCodec | TinyCodec:
    """A codec of the published sizes (``wan``: times ``base_dim`` over 96) with freshly drawn weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)  # weights are drawn in it: no copy of another dtype counts into the peak
    codec = WanCodec(AutoencoderKLWan(base_dim=base_dim)) if name == "wan" else TinyCodec()
    torch.set_default_dtype(torch.float32)
    return codec.eval()


def check_streaming(codec: VideoCodec, latents: torch.Tensor) -> None:
    """Stop unless frame by frame equals at once."""
    cache = codec.new_cache()
    streamed = torch.cat([codec.decode(frame, cache) for frame in latents.split(1, dim=2)], dim=2)
    at_once = codec.decode(latents)
    if (streamed - at_once).float().norm() > 2e-2 * at_once.float().norm():
        raise SystemExit("A stream differs from decoding at once; the times of a wrong decoder say nothing.")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", default="wan", choices=("wan", "tiny"))
    parser.add_argument("--frames", type=int, default=20, help="latent frames")
    parser.add_argument("--block", type=int, default=3, help="latent frames of a call")
    parser.add_argument("--height", type=int, default=64, help="pixels")
    parser.add_argument("--width", type=int, default=64, help="pixels")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32"))
    parser.add_argument("--base-dim", type=int, default=96, help="of the Wan VAE (published: 96)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype = getattr(torch, given.dtype)

    codec = random_codec(given.codec, dtype, given.base_dim)
    draw = torch.Generator().manual_seed(0)
    height, width = given.height // codec.spatial_factor, given.width // codec.spatial_factor
    times, busy, video_frames, cache = [], [], 0, codec.new_cache()
    with torch.no_grad():
        check_streaming(codec, torch.randn(1, codec.latent_channels, 3, 2, 2, generator=draw).to(dtype))
        for start in range(0, given.frames, given.block):
            count = min(given.block, given.frames - start)
            latents = torch.randn(1, codec.latent_channels, count, height, width, generator=draw).to(dtype)
            started = time.perf_counter(), time.process_time()
            video = codec.decode(latents, cache)
            times.append((time.perf_counter() - started[0]) / count)
            busy.append((time.process_time() - started[1]) / count)
            video_frames += video.shape[2]
            if not bool(torch.isfinite(video).all()):
                raise SystemExit("The video is not finite.")
    held = sum(x.numel() * x.element_size() for x in cache.features.values())
    parameters = sum(x.numel() for x in codec.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = statistics.median(times)
    print(
        f"{given.codec}, {parameters / 1e6:.1f} M parameters, {given.dtype}, {given.width} x {given.height}, "
        f"{given.threads} threads: {given.frames} latent frames ({video_frames} video frames), median "
        f"{seconds * 1e3:.0f} ms a latent frame ({statistics.median(busy) * 1e3:.0f} ms of processor time), "
        f"cache {held / 1e6:.1f} MB, peak of the process {peak / 1e6:.0f} MB"
    )
    print(
        json.dumps(
            {
                "benchmark": "wan_decode",
                "codec": given.codec,
                "base_dim": given.base_dim if given.codec == "wan" else None,
                "dtype": given.dtype,
                "height": given.height,
                "width": given.width,
                "latent_frames": given.frames,
                "video_frames": video_frames,
                "threads": given.threads,
                "torch": torch.__version__,
                "block": given.block,
                "median_seconds": seconds,
                "median_processor_seconds": statistics.median(busy),
                "total_seconds": sum(times),
                "cache_bytes": held,
                "peak_bytes": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
