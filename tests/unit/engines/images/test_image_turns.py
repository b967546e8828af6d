"""Who makes a step together: fair, within bounds, and never more than may be shared."""

from typing import Any

import pytest

from serai.engines.images.image_turns import MAX_SAMPLES, Making, share
from serai.engines.tasks import GenerateImage


def making(run: int, *, side: int = 8, rows: int = 2, mix: Any = (), **members: Any) -> Making:
    task = GenerateImage(prompt="x", width=64, height=64, steps=2, guidance_scale=5, seed=0, **members)
    return Making(run=run, task=task, size=(side, side), mix=mix, rows=[[0] * 77] * rows, truncated={})


def shared(*makings: Making) -> list[tuple[int, int]]:
    return [(one.run, count) for one, count in share(list(makings))]


def test_each_run_has_a_picture_before_any_has_two() -> None:
    """Four guided pictures fill a call of eight samples; unguided ones take half as much."""
    assert shared(making(1, images=8), making(2, images=8)) == [(1, 2), (2, 2)]
    assert shared(making(1, images=8), making(2), making(3)) == [(1, 2), (2, 1), (3, 1)]
    assert shared(*(making(run) for run in range(6))) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert shared(making(1, rows=1, images=8)) == [(1, 8)]
    assert shared(making(1, images=3), making(2, rows=1, images=9)) == [(1, 3), (2, 2)]


def test_a_run_that_is_nearly_done_takes_no_room_for_more() -> None:
    """Pictures that are finished do not count."""
    nearly = making(1, images=8)
    nearly.done = 7
    assert shared(nearly, making(2, images=8)) == [(1, 1), (2, 3)]


@pytest.mark.parametrize("other", [{"side": 16}, {"mix": (("a", 1.0),)}, {"reproducible": True}])
def test_what_does_not_fit_waits_for_its_turn(other: dict[str, Any]) -> None:
    """Another size, other adapters, and runs that are to be repeated go by themselves."""
    assert shared(making(1), making(2, **other), making(3)) == [(1, 1), (3, 1)]
    assert shared(making(2, images=3, **other), making(1), making(3))[0][0] == 2


def test_what_is_to_be_repeated_goes_one_picture_at_a_time() -> None:
    """So that the network sees the same shapes whether there are one picture or eight."""
    assert shared(making(1, images=8, reproducible=True), making(2)) == [(1, 1)]


@pytest.mark.parametrize(("side", "count"), [(8, 4), (64, 2), (96, 1), (1024, 1)])
def test_large_pictures_share_less(side: int, count: int) -> None:
    """The latents of one call are bound, and one picture always goes."""
    assert shared(making(1, side=side, images=MAX_SAMPLES)) == [(1, count)]
