"""One file of the corpus: how to make it, and how opening it must end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Expectation = Literal["ok", "malformed", "too_large", "unsupported", "rejected", "any"]
"""`rejected`: with any error that blames the file. `any`: so, or well; never with an error that blames the server."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """`build` makes the bytes, anew at each call, in under two seconds and from nothing."""

    name: str
    build: Callable[[], bytes]
    expectation: Expectation


def cut(name: str, build: Callable[[], bytes], expectation: Expectation) -> list[Specimen]:
    """Return the file that `build` makes, cut off at each sixteenth of its length."""

    def shortened(sixteenths: int) -> bytes:
        whole = build()
        return whole[: len(whole) * sixteenths // 16]

    return [
        Specimen(f"{name}-cut-{part}-16ths", lambda part=part: shortened(part), expectation)  # type: ignore[misc]
        for part in range(1, 16)
    ]
