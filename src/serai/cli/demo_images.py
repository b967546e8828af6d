"""The part of the demo in which pictures are made: live steps, a twin, and two kinds of model in one budget."""

import threading
from collections.abc import Sequence
from typing import Any

from serai.cli.demo import MEMORY_BYTES, Stage, check, events_of

MODEL = "starter-image"
PROMPT = "a red circle left of a blue square"
SETTINGS = {"seed": 7, "num_inference_steps": 12}
TOGETHER = 4
"""Chats, and as many pictures, that are asked for at once."""


def a_picture_is_made(stage: Stage) -> str:
    """A picture is made from a text, and every step of it is seen."""
    told = _made(stage, {"model": MODEL, "prompt": PROMPT, "settings": SETTINGS, "previews": 2})
    steps = [event["done"] for event in told if event["type"] == "progress" and event["stage"] == "generating"]
    previews = [event for event in told if event["type"] == "media"]
    (picture,) = told[-1]["result"]["images"]
    check(sorted(set(steps)) == list(range(1, 13)), f"the steps told are {steps}")
    check(len(previews) == 2, f"{len(previews)} previews came")
    data = stage.call("GET", picture["url"])
    check(data.startswith(b"\x89PNG"), "what came is no PNG")
    stage.kept["picture"] = picture
    return f"“{PROMPT}”: {len(set(steps))} steps, {picture['width']}×{picture['height']}, {len(data)} bytes"


def its_twin_is_the_same(stage: Stage) -> str:
    """What the gallery tells of a picture makes it again, byte for byte."""
    told = stage.call("GET", f"/images/{stage.kept['picture']['id']}/metadata")
    (twin,) = _made(stage, told["request"])[-1]["result"]["images"]
    check(twin["sha256"] == stage.kept["picture"]["sha256"], "the twin has other bytes")
    found = stage.call("GET", "/images", params={"search": "circle square"})["items"]
    check(len(found) == 2, f"the gallery finds {len(found)} pictures")
    return f"seed {twin['seed']}, sha256 {twin['sha256'][:12]}…, both in the gallery"


def two_kinds_share_one_budget(stage: Stage) -> str:
    """Chats and pictures asked for at once are all answered, and memory is never over its budget."""
    failed: list[str] = []

    def run(call: Any, number: int) -> None:
        try:
            call(stage, number)
        except Exception as error:  # noqa: BLE001 - what one thread meets is told by the step
            failed.append(f"{type(error).__name__}: {error}")

    calls = [(call, number) for number in range(TOGETHER) for call in (_chat, _picture)]
    threads = [threading.Thread(target=run, args=one) for one in calls]
    for thread in threads:
        thread.start()
    most, both = _watched(stage, threads)
    check(not failed, "; ".join(failed))
    check(not both, "the two were in memory at once, which the budget does not hold")
    return (
        f"{len(calls)} answers; at most {most // 2**20} of {MEMORY_BYTES // 2**20} MiB in use, one of the two at a time"
    )


STEPS = (a_picture_is_made, its_twin_is_the_same, two_kinds_share_one_budget)


def _made(stage: Stage, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask for pictures, and return every event of the job; the last one is its end, which must be good."""
    accepted = stage.call("POST", "/images/generations", json=body, expect=202)
    told = list(events_of(stage, "GET", f"/jobs/{accepted['job_id']}/events"))
    check(told[-1]["type"] == "done", f"the job ended with {told[-1]}")
    return told


def _chat(stage: Stage, number: int) -> None:
    messages = [{"role": "user", "content": f"How do I pull a model, please? ({number})"}]
    answer = stage.call("POST", "/chat", json={"model": "demo-pulled", "messages": messages})
    check(answer["message"]["content"], "a chat was answered with nothing")


def _picture(stage: Stage, number: int) -> None:
    _made(stage, {"model": MODEL, "prompt": f"{number} green stars", "settings": {"num_inference_steps": 4}})


def _watched(stage: Stage, threads: Sequence[threading.Thread]) -> tuple[int, bool]:
    """Look at the memory until all have ended; return the most that was in use, and whether both were ready at once."""
    most, both = 0, False
    while any(thread.is_alive() for thread in threads):
        for device, memory in stage.call("GET", "/health")["memory"].items():
            check(memory["used_bytes"] <= memory["budget_bytes"], f"{device} is over its budget: {memory}")
            most = max(most, memory["used_bytes"])
        ready = {one["model"] for one in stage.call("GET", "/ps")["items"] if one["state"] == "ready"}
        both = both or {MODEL, "demo-pulled"} <= ready
        for thread in threads:
            thread.join(0.05)
    return most, both
