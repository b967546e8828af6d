"""One ledger, two kinds: a chat model and an image model that do not fit side by side, asked at the same time."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from serai.clock import SystemClock
from support.model_server import MIB, ModelServer, model_server, said

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

MODEL_BYTES = 200 * MIB
BUDGET = 300 * MIB
KEYS, EACH = 3, 10
STALL_S = 20.0
"""How long a stream that has begun may be silent: its words take a hundredth of a second each."""


async def make(server: ModelServer, id_: str, task: str) -> None:
    """Create a model of 150 MiB whose footprint says 200."""
    options = {"bytes": 150 * MIB, "step_s": 0.01, "max_runs": 4}
    body = {
        "id": id_,
        "task": task,
        "licence": "MIT",
        "version": "1.0.0",
        "engine": "fake",
        "engine_options": options,
        "source": {"kind": "package", "name": id_},
        "footprint": [{"device": "cpu", "bytes": MODEL_BYTES}],
    }
    await said(server.admin.post("/models", json=body), 201)


async def chat(server: ModelServer, client: httpx.AsyncClient, stalls: list[float]) -> None:
    """Stream one answer of ten words, and note the longest silence between two of them."""
    text, seconds = " ".join(str(number) for number in range(10)), SystemClock().monotonic
    messages = [{"role": "user", "content": text}]
    async with server.stream("talker", client=client, messages=messages) as stream:
        words, last = [], None
        async for word in stream.texts():
            now = seconds()
            if last is not None:
                stalls.append(now - last)
            last = now
            words.append(word)
        assert text in "".join(words)


async def picture(client: httpx.AsyncClient, number: int) -> None:
    """Have one picture made, through OpenAI's form, which waits for it."""
    body = {"model": "painter", "prompt": f"number {number}", "size": "64x64", "n": 1, "num_inference_steps": 5}
    answer = await said(client.post("/v1/images/generations", json=body))
    assert len(answer["data"]) == 1


async def watch(server: ModelServer, seen: list[dict[str, Any]]) -> None:
    """Keep every different state of the memory that is told, until cancelled."""
    while True:
        memory = (await said(server.admin.get("/health")))["memory"]["cpu"]
        names = sorted(one["model"] for one in await server.ps())
        seen.append({**memory, "names": names})
        await asyncio.sleep(0.05)


async def test_sixty_mixed_requests_share_a_budget_that_holds_one_of_two_models(tmp_path: Path) -> None:
    """All end well, memory is never over its budget, no stream stalls; ps, metrics and decisions tell the story."""
    async with model_server(tmp_path / "home", cpu_memory_bytes=BUDGET) as server:
        await make(server, "talker", "chat")
        await make(server, "painter", "image-generation")
        clients = [await server.user(f"user-{number}") for number in range(KEYS)]
        seen: list[dict[str, Any]] = []
        stalls: list[float] = []
        watching = asyncio.create_task(watch(server, seen))
        async with asyncio.timeout(400), asyncio.TaskGroup() as group:
            for number in range(EACH):
                for client in clients:
                    group.create_task(chat(server, client, stalls))
                    group.create_task(picture(client, number))
        watching.cancel()

        assert {one["budget_bytes"] for one in seen} == {BUDGET}
        assert max(one["used_bytes"] for one in seen) <= BUDGET
        assert {"painter"} <= {name for one in seen for name in one["names"]} <= {"painter", "talker"}
        assert max(stalls) < STALL_S
        figures = await server.figures()
        evicted = sum(v for name, v in figures.items() if name.startswith("serai_runtime_unloads_total"))
        assert evicted >= 1, "one made room for the other"
        assert evicted < KEYS * EACH, "they did not take turns at every request"
        rows = await server.await_rows("served", 2 * KEYS * EACH)
        assert Counter(row["model"] for row in rows) == {"talker": KEYS * EACH, "painter": KEYS * EACH}
