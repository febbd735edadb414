"""Live H.264: encoded once, and the same pictures as packets, as mp4 fragments and from any key frame on."""

import io

import av
import numpy as np
import pytest

from arl2.errors import GeometryError, StreamError
from arl2.video.fragments import FragmentedMp4
from arl2.video.h264 import H264Encoder, nal_units
from serving.test_hls import pictures

FPS, SIDE = 8, 64
SPS, PPS, IDR = 7, 8, 5


def numbers_of(container: av.container.InputContainer) -> list[int]:
    """What ``pictures`` made."""
    found = []
    for frame in container.decode(video=0):
        stripes = frame.to_ndarray(format="rgb24").mean(axis=(0, 2)).reshape(8, -1).mean(axis=1)
        found.append(sum(1 << bit for bit in range(8) if stripes[bit] > 128))
    return found


def encoded(keys: set[int], frames: int = 20) -> tuple[H264Encoder, list[av.Packet]]:
    encoder = H264Encoder(SIDE, SIDE, FPS)
    packets = []
    for number, picture in enumerate(pictures(*range(frames), side=SIDE)):
        ready = encoder.encode(picture, number, key=number in keys)
        assert len(ready) == 1, "a live viewer waits for no later frame"
        packets += ready
    assert encoder.flush() == []
    return encoder, packets


def test_key_frames_are_where_they_are_wanted_and_can_be_begun_with() -> None:
    _, packets = encoded({0, 7, 13})
    # The encoder may think that there are others.
    assert {packet.pts for packet in packets if packet.is_keyframe} >= {0, 7, 13}
    for packet in packets:
        kinds = {unit[0] & 31 for unit in nal_units(bytes(packet))}
        assert ({SPS, PPS, IDR} <= kinds) == packet.is_keyframe
    with av.open(io.BytesIO(b"".join(map(bytes, packets[7:]))), format="h264") as container:
        assert numbers_of(container) == list(range(7, 20))


def test_units_are_split_at_start_codes_of_either_length() -> None:
    assert list(nal_units(b"\0\0\0\1\x67ab\0\0\1\x68\0c\0\0\0\1\0\0\1\x65")) == [b"\x67ab", b"\x68\0c", b"\x65"]
    assert list(nal_units(b"")) == []


@pytest.mark.parametrize("size", [1, 3, 20])
@pytest.mark.parametrize("begin", [0, 7])
def test_fragments_of_any_length_play_from_a_key_frame_on(size: int, begin: int) -> None:
    encoder, packets = encoded({0, 7})
    mp4 = FragmentedMp4.of(encoder)
    mp4.fragment(packets[:1])  # what came before a viewer did
    groups = [packets[at : min(at + size, 20)] for at in range(begin, 20, size)]
    data = mp4.init_segment + b"".join(mp4.fragment(group) for group in groups)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", SIDE, SIDE)
        assert float(stream.average_rate) == FPS
        assert stream.codec_context.colorspace == 6
        seconds = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]
        assert seconds == [number / FPS for number in range(begin, 20)]
    with av.open(io.BytesIO(data)) as container:
        assert numbers_of(container) == list(range(begin, 20))


def test_a_fragment_is_whole_at_once() -> None:
    """Its last frame is decoded without anything after it."""
    encoder, packets = encoded({0}, frames=3)
    mp4 = FragmentedMp4.of(encoder)
    first = mp4.fragment(packets)
    with av.open(io.BytesIO(mp4.init_segment + first)) as container:
        assert numbers_of(container) == [0, 1, 2]
    assert mp4.codec == f"avc1.{next(unit for unit in nal_units(bytes(packets[0])) if unit[0] & 31 == SPS)[1:4].hex()}"


def test_what_cannot_be_is_refused() -> None:
    encoder, packets = encoded({0}, frames=2)
    mp4 = FragmentedMp4.of(encoder)
    with pytest.raises(StreamError, match="got no packets"):
        mp4.fragment([])
    for ask in (lambda: mp4.init_segment, lambda: mp4.codec, lambda: mp4.fragment(packets[1:])):
        with pytest.raises(StreamError, match="No key frame has come yet"):
            ask()
    with pytest.raises(GeometryError, match="even sides"):
        H264Encoder(33, 32, FPS)
    with pytest.raises(GeometryError, match="32 x 16 in a video of 64 x 64"):
        encoder.encode(np.zeros((16, 32, 3), dtype=np.uint8), 9)
