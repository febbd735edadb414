"""Layers named by ranges, by a share, or by a ranking."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arl2.checkpoints.layer_choice import parse_layers, read_ranking, share_of_layers
from arl2.errors import ConfigError


@given(st.sets(st.integers(0, 39), min_size=1))
def test_numbers_come_back_however_they_are_written(layers) -> None:
    numbers = ",".join(str(layer) for layer in sorted(layers, reverse=True))
    ranges = " , ".join(f"{layer}-{layer}" for layer in layers)
    assert parse_layers(numbers, 40) == parse_layers(ranges, 40) == sorted(layers)


def test_ranges_hold_both_ends() -> None:
    assert parse_layers("0-21,25", 30) == [*range(22), 25]


@pytest.mark.parametrize("text", ["", "1,", "a", "1-", "-1", "1.5", "1-2-3", "²"])
def test_what_is_no_list_of_layers(text) -> None:
    with pytest.raises(ConfigError, match="no numbers and ranges; give some such as 0-21,25"):
        parse_layers(text, 40)


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="no layer 30: the model has layers 0 to 29"):
        parse_layers("28-30", 30)
    with pytest.raises(ConfigError, match="no layer 99999999999999"):
        parse_layers("0-99999999999999", 30)  # refused before it is spelled out
    with pytest.raises(ConfigError, match="runs backwards"):
        parse_layers("5-3", 30)


def test_the_published_shares() -> None:
    assert share_of_layers(0.75, 30) == list(range(22))
    assert share_of_layers(0.5, 30) == list(range(15))
    assert share_of_layers(1.0, 4) == [0, 1, 2, 3]
    assert len(share_of_layers(0.7, 10)) == 7  # 0.7 * 10 is 7, whatever floating point says


def test_a_ranking_chooses_and_kept_layers_make_room() -> None:
    assert share_of_layers(0.5, 4, ranking=[3, 1, 0, 2]) == [1, 3]
    assert share_of_layers(0.5, 4, ranking=[3, 1, 0, 2], keep=[3]) == [0, 1]
    assert share_of_layers(0.5, 4, keep=[0]) == [1, 2]


@pytest.mark.parametrize(
    ("fraction", "asked", "said"),
    [
        (0.1, {}, "Got a share of 0.1 of 4 layers"),
        (0, {}, "give 0.250"),
        (1.2, {}, "Got a share of 1.2"),
        (float("nan"), {}, "Got a share of nan"),
        (1.0, {"keep": [0]}, "the model has 3"),
        (0.5, {"ranking": [1]}, "the ranking names 1"),
        (0.5, {"ranking": [1, 4]}, "no layer 4"),
        (0.5, {"keep": [9]}, "no layer 9"),
    ],
)
def test_shares_that_cannot_be(fraction, asked, said) -> None:
    with pytest.raises(ConfigError, match=said):
        share_of_layers(fraction, 4, **asked)


def test_rankings_are_read_strictly(tmp_path) -> None:
    path = tmp_path / "ranking.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_ranking(path)
    for content, said in (
        ("{", "is not readable JSON"),
        ("[1, 2]", "no list of layers called 'ranking'"),
        ('{"ranking": [1, true]}', "no list"),
        ('{"ranking": [1, 1]}', "names a layer twice"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_ranking(path)
    path.write_text(json.dumps({"ranking": [2, 0, 1], "scores": [0.1, 0.2, 0.3]}))
    assert read_ranking(path) == [2, 0, 1]
