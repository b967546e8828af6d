"""A call that stands still between its steps."""

import threading

import pytest

from serai.engines.images.diffusers_parked import Parked, Pause


def pipeline_threads() -> int:
    return sum(thread.name == "pipeline" for thread in threading.enumerate())


def test_it_goes_on_only_while_it_is_waited_for() -> None:
    """Each resume lets it run to the next pause; two such calls never compute at once."""
    done: list[str] = []

    def steps(name: str) -> Parked[str]:
        def work(pause: Pause) -> str:
            for step in range(2):
                done.append(f"{name}{step}")
                pause()
            return name

        return Parked(work)

    one, two = steps("a"), steps("b")
    assert [call.resume() for call in (one, two, one, two)] == [True] * 4
    assert done == ["a0", "b0", "a1", "b1"]
    assert pipeline_threads() == 2
    assert [one.resume(), two.resume()] == [False, False]
    assert (one.result, two.result) == ("a", "b")
    assert pipeline_threads() == 0


def test_what_it_raises_is_raised_where_it_is_waited_for() -> None:
    """Before the first pause and after one; then it is over."""

    def work(pause: Pause) -> None:
        pause()
        raise ValueError("no")

    call = Parked(work)
    assert call.resume()
    with pytest.raises(ValueError, match="no"):
        call.resume()
    call.stop()
    assert pipeline_threads() == 0


def test_stopping_frees_what_it_holds() -> None:
    """A call that stands still is unwound, though it catches exceptions; one that never began is forgotten."""
    freed: list[str] = []

    def work(pause: Pause) -> None:
        try:
            while True:
                try:
                    pause()
                except Exception:  # noqa: BLE001 - as a library might
                    freed.append("caught")
        finally:
            freed.append("unwound")

    call = Parked(work)
    call.resume()
    call.stop()
    assert freed == ["unwound"]
    assert pipeline_threads() == 0
    Parked(work).stop()
    assert freed == ["unwound"]
