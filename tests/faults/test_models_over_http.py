"""Models that fail, are shot, wait or are switched, over HTTP: a real server and real workers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.model_server import DIALECTS, ENDLESS, ModelServer, all_gone, is_alive, model_server, said
from support.upstream import Upstream, chunk, reply, streams
from support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.fault]


@pytest.fixture
async def server(tmp_path: Path, anyio_backend: str) -> AsyncIterator[ModelServer]:
    async with model_server(tmp_path / "home", outbound_allow="127.0.0.1") as started:
        yield started


# The chain

FAILURES: dict[str, tuple[str, str]] = {
    "load": ("load_error", "LOAD_FAILED"),
    "load_oom": ("out_of_memory", "OUT_OF_MEMORY"),
    "load_crash": ("crash", "WORKER_CRASHED"),
    "start": ("load_error", "ENGINE_FAILED"),
    "run": ("load_error", "ENGINE_FAILED"),
    "step": ("crash", "WORKER_CRASHED"),
    "oom": ("out_of_memory", "OUT_OF_MEMORY"),
    "crash": ("crash", "WORKER_CRASHED"),
}
UPSTREAM = {500: "remote_5xx", 429: "remote_429"}


async def test_whatever_fails_the_next_link_answers_and_the_reason_is_told_everywhere(server: ModelServer) -> None:
    """In the headers, in the stored decision, in the metrics, and in one line of the log."""
    await server.model("good")
    for fail, (failure, code) in FAILURES.items():
        await server.model(f"bad-{fail}", fail=fail)
        await server.service(f"s-{fail}", f"bad-{fail}@1.0.0", "good@1.0.0")
        await check_hop(server, f"s-{fail}", f"bad-{fail}", failure, code)
    async with Upstream() as upstream:
        await server.remote("far", upstream.endpoint)
        await server.service("s-far", "far@1.0.0", "good@1.0.0")
        for status, failure in UPSTREAM.items():
            upstream.behave("/chat/completions", reply(status, {"error": {"message": "told to"}}))
            await check_hop(server, "s-far", "far", failure)


async def test_a_worker_that_hangs_is_ended_and_the_next_link_answers(tmp_path: Path) -> None:
    """As long as `worker_silence_s` allows; the process is gone."""
    async with model_server(tmp_path / "home", worker_silence_s=2) as server:
        await server.model("good")
        await server.model("bad", fail="hang")
        await server.service("s", "bad@1.0.0", "good@1.0.0")
        await said(server.admin.post("/models/bad/load"))
        pid = await server.pid("bad")
        await check_hop(server, "s", "bad", "timeout", "WORKER_HUNG")
        await all_gone([pid])


async def check_hop(server: ModelServer, service: str, bad: str, failure: str, code: str | None = None) -> None:
    """Ask a service whose first link fails so, and look at all that tells of it."""
    before = await server.figures()
    answer = await server.chat(service)
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    assert answer.json()["message"]["content"] == "User: one two Assistant:", service
    assert (headers["x-serai-model"], headers["x-serai-reason"]) == ("good@1.0.0", "fallback_error"), service
    assert headers["x-serai-fallback"] == f"{bad}@1.0.0=failed", service

    row = await server.decision(headers["x-serai-decision"])
    assert (row["service_id"], row["model_id"], row["reason"]) == (service, "good", "fallback_error")
    document = row["document"]
    assert document["outcome"] == "served"
    first, last = document["chain"]
    assert (first["model"], first["outcome"], last["model"], last["outcome"]) == (bad, "failed", "good", "served")
    assert first["error"]

    after = await server.figures()
    name = f"serai_fallbacks_total{{failure={failure}}}"
    assert after[name] - before.get(name, 0.0) == 1, service
    name = "serai_decisions_total{outcome=served,reason=fallback_error}"
    assert after[name] - before.get(name, 0.0) == 1, service

    told = {"service": service, "candidate": f"{bad}@1.0.0", "next": "good@1.0.0", "failure": failure}

    async def is_logged() -> bool:
        return bool(server.events("fallback", **told))

    await eventually(is_logged)
    (line,) = server.events("fallback", **told)
    assert code is None or line["code"] == code
    assert line["request_id"] == headers["x-request-id"] == document["request_id"]


async def test_a_stream_falls_back_before_it_opens(server: ModelServer) -> None:
    """Its headers tell who answers and in place of whom, in every dialect."""
    await server.model("good")
    await server.model("bad", fail="run")
    await server.service("s", "bad@1.0.0", "good@1.0.0")
    for dialect in DIALECTS:
        async with server.stream("s", dialect) as stream:
            assert stream.headers["x-serai-fallback"] == "bad@1.0.0=failed", dialect
            assert stream.headers["x-serai-model"] == "good@1.0.0", dialect
            text, errors = await stream.rest()
            assert (bool(text), errors) == (True, []), dialect


async def test_a_chain_without_an_answer_tells_the_last_failure(server: ModelServer) -> None:
    """As a status before anything was said, streamed or not; the decision is stored with both links."""
    await server.model("bad", fail="run")
    await server.model("worse", fail="start")
    await server.service("s", "bad@1.0.0", "worse@1.0.0")
    for streamed in (False, True):
        answer = await server.chat("s", stream=streamed)
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "ENGINE_FAILED"
        refused = await server.admin.post("/v1/chat/completions", json=v1_body("s", stream=streamed))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")

    for document in await server.await_rows("failed", 4):
        assert [link["outcome"] for link in document["chain"]] == ["failed", "failed"]


async def test_what_failed_to_load_is_skipped_until_it_is_cleared(server: ModelServer) -> None:
    """Cooldown: the next request does not try it, and says so; asked for by name it is 429 with Retry-After."""
    await server.model("good")
    await server.model("bad", fail="load")
    await server.service("s", "bad@1.0.0", "good@1.0.0")
    assert (await server.chat("s")).headers["x-serai-fallback"] == "bad@1.0.0=failed"

    second = await server.chat("s")
    assert second.headers["x-serai-fallback"] == "bad@1.0.0=skipped"
    assert second.headers["x-serai-reason"] == "fallback_unavailable"
    row = await server.decision(second.headers["x-serai-decision"])
    assert [link["outcome"] for link in row["document"]["chain"]] == ["skipped", "served"]

    alone = await server.chat("bad")
    assert alone.status_code == 429
    assert 0 < int(alone.headers["retry-after"]) <= 300
    assert (await server.admin.post("/models/bad/cooldown/clear")).status_code == 204
    assert (await server.chat("s")).headers["x-serai-fallback"] == "bad@1.0.0=failed"


async def test_a_callers_own_mistake_never_falls_back(server: ModelServer) -> None:
    """Neither where a worker finds it, nor another server, nor the door; the second link is not even loaded."""
    await server.model("good")
    await server.model("strict", fail="invalid")
    await server.service("s", "strict@1.0.0", "good@1.0.0")
    assert (await server.chat("s")).status_code == 422
    assert (await server.admin.post("/v1/chat/completions", json=v1_body("s"))).status_code == 400
    assert (await server.chat("s", temperature=9)).status_code == 422
    async with Upstream() as upstream:
        await server.remote("far", upstream.endpoint)
        await server.service("s-far", "far@1.0.0", "good@1.0.0")
        wrong = {"error": {"message": "max_tokens is too large", "type": "invalid_request_error"}}
        upstream.behave("/chat/completions", reply(400, wrong))
        refused = await server.chat("s-far")
        assert refused.status_code == 422, refused.text
        assert len(upstream.requests) == 1
    assert await server.loaded("good") is None
    assert not any(name.startswith("serai_fallbacks_total{") for name in await server.figures())


async def test_nothing_falls_back_after_the_first_output(server: ModelServer) -> None:
    """The stream ends with an error in the form of its dialect, and the next link is not asked."""
    await server.model("good")
    await server.model("breaks", fail="run", fail_after=2)
    await server.service("s", "breaks@1.0.0", "good@1.0.0")
    for dialect in DIALECTS:
        async with server.stream("s", dialect) as stream:
            assert stream.headers["x-serai-model"] == "breaks@1.0.0", dialect
            assert await stream.first_text()
            _, errors = await stream.rest()
            check_errors(dialect, errors)
            assert stream.ended_with_done == (dialect in ("openai", "completions"))
        row = await server.decision(stream.headers["x-serai-decision"])
        assert [link["outcome"] for link in row["document"]["chain"]] == ["failed"], dialect
        assert row["document"]["outcome"] == "failed", dialect
    assert await server.loaded("good") is None


async def test_another_server_that_breaks_off_does_not_fall_back_either(server: ModelServer) -> None:
    """What it had said stands, and the error follows."""
    await server.model("good")
    async with Upstream() as upstream:
        upstream.behave("/chat/completions", streams(chunk("Hel"), chunk("lo"), cut=True))
        await server.remote("far", upstream.endpoint)
        await server.service("s", "far@1.0.0", "good@1.0.0")
        async with server.stream("s", "openai") as stream:
            said_, errors = await stream.rest()
    assert said_ == "Hello"
    check_errors("openai", errors)
    assert await server.loaded("good") is None


def check_errors(dialect: str, errors: list[Any]) -> None:
    """There must be exactly one, in the form of the dialect."""
    (error,) = errors
    if dialect.startswith("ollama"):
        assert isinstance(error, str)
        assert error
    else:
        assert error["message"]
        assert error["code"]
    if dialect in ("openai", "completions"):
        assert error["type"] == "server_error"
    if dialect == "native":
        assert error["request_id"]


# kill -9


async def test_a_worker_that_is_shot_while_idle_is_left_alone_until_it_is_cleared(server: ModelServer) -> None:
    """It is gone from /ps; asked for by name it is 429, then, cleared, it answers from a new worker."""
    await server.model("m")
    assert (await server.chat("m")).status_code == 200
    pid = await server.pid("m")
    os.kill(pid, signal.SIGKILL)
    await all_gone([pid])
    await eventually(gone_from_ps(server, "m"))
    refused = await server.chat("m")
    assert refused.status_code == 429, refused.text
    assert refused.json()["error"]["code"] == "MODEL_IN_COOLDOWN"
    assert int(refused.headers["retry-after"]) > 0
    assert (await server.admin.post("/models/m/cooldown/clear")).status_code == 204
    assert (await server.chat("m")).status_code == 200
    assert await server.pid("m") != pid


async def test_a_worker_that_is_shot_while_it_loads(server: ModelServer, tmp_path: Path) -> None:
    """Who waited is answered by the next link, or told at once; the memory is back."""
    gate = tmp_path / "gate"
    await server.model("slow", load_gate=str(gate))
    await server.model("good")
    await server.service("s", "slow@1.0.0", "good@1.0.0")
    async with asyncio.TaskGroup() as group:
        by_service = group.create_task(server.chat("s"))
        by_name = group.create_task(server.chat("slow"))
        pid = await loading_pid(server, "slow")
        os.kill(pid, signal.SIGKILL)
    assert by_service.result().headers["x-serai-fallback"] == "slow@1.0.0=failed"
    assert by_name.result().status_code == 503
    assert by_name.result().json()["error"]["code"] == "WORKER_CRASHED"
    assert await server.loaded("slow") is None
    await all_gone([pid])
    gate.touch()
    assert (await server.admin.post("/models/slow/cooldown/clear")).status_code == 204
    assert (await server.chat("s")).headers["x-serai-model"] == "slow@1.0.0"


async def test_a_worker_that_is_shot_ends_every_stream_in_the_form_of_its_dialect(server: ModelServer) -> None:
    """All that run on it end, none falls back; the next request of the service is answered by the next link."""
    await server.model("m", tokens=ENDLESS, step_s=0.005)
    await server.model("good")
    await server.service("s", "m@1.0.0", "good@1.0.0")

    async def watch(dialect: str, begun: asyncio.Event) -> None:
        async with server.stream("s", dialect) as stream:
            await stream.first_text()
            begun.set()
            _, errors = await stream.rest()
            check_errors(dialect, errors)
        row = await server.decision(stream.headers["x-serai-decision"])
        assert (row["document"]["outcome"], row["document"]["failure"]) == ("failed", "crash")

    events = {dialect: asyncio.Event() for dialect in DIALECTS}
    async with asyncio.TaskGroup() as group:
        for dialect, begun in events.items():
            group.create_task(watch(dialect, begun))
        for begun in events.values():
            await begun.wait()
        assert await server.in_flight("m") == len(DIALECTS)
        pid = await server.pid("m")
        os.kill(pid, signal.SIGKILL)
    await all_gone([pid])
    assert await server.loaded("m") is None
    after = await server.chat("s")
    assert after.headers["x-serai-model"] == "good@1.0.0"
    assert after.headers["x-serai-fallback"] == "m@1.0.0=skipped"
    assert (await server.admin.post("/models/m/cooldown/clear")).status_code == 204
    assert (await server.chat("m", max_tokens=2)).status_code == 200


async def test_a_server_that_is_shot_leaves_no_worker(server: ModelServer, tmp_path: Path) -> None:
    """Whatever it was doing: one model idle, one running, one loading. The next start has a clean memory."""
    await server.model("idle")
    await server.model("busy", tokens=ENDLESS, step_s=0.005)
    await server.model("slow", load_gate=str(tmp_path / "never"))
    await server.chat("idle")
    loading = asyncio.ensure_future(server.chat("slow"))
    async with server.stream("busy") as stream:
        await stream.first_text()
        await loading_pid(server, "slow")
        pids = server.workers()
        assert len(pids) >= 4, "three workers and what forks them"
        os.kill(server.process.pid, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            await stream.rest()
    with pytest.raises(httpx.HTTPError):
        await loading
    await all_gone(pids)
    async with model_server(server.process.home) as next_one:
        assert await next_one.ps() == []
        assert (await next_one.chat("idle")).status_code == 200


# The end of the server


async def test_a_stop_during_a_load_and_during_streams_ends_in_bound(tmp_path: Path) -> None:
    """SIGTERM: streams get the time of `shutdown_grace_s`, then everything is gone, and the exit code is 0."""
    async with model_server(tmp_path / "home", shutdown_grace_s=1) as server:
        await server.model("busy", tokens=ENDLESS, step_s=0.005)
        await server.model("slow", load_gate=str(tmp_path / "never"))
        loading = asyncio.ensure_future(server.chat("slow"))
        await loading_pid(server, "slow")
        async with server.stream("busy") as stream, server.stream("busy", "openai") as other:
            await stream.first_text()
            await other.first_text()
            pids = server.workers()
            server.process.terminate()
            ends = await asyncio.gather(stream.rest(), other.rest(), loading, return_exceptions=True)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        for end in ends:
            assert not isinstance(end, BaseException) or isinstance(end, httpx.HTTPError), end
        await all_gone(pids)


async def test_a_stop_lets_answers_that_run_come_to_their_end(server: ModelServer) -> None:
    """SIGTERM, streamed and not: nothing is cut off within `shutdown_grace_s`; new callers find no server."""
    await server.model("m", tokens=ENDLESS, step_s=0.005)
    whole = asyncio.ensure_future(server.chat("m", max_tokens=200))
    async with server.stream("m", max_tokens=200) as stream:
        first = await stream.first_text()
        await server.await_runs("m", 2)
        server.process.terminate()
        text, errors = await stream.rest()
    assert (len((first + text).split()), errors) == (200, [])
    assert len((await whole).json()["message"]["content"].split()) == 200
    assert await asyncio.to_thread(server.process.wait, 60) == 0
    with pytest.raises(httpx.HTTPError):
        await server.ps()


async def test_a_stop_ends_what_takes_too_long_with_a_word(tmp_path: Path) -> None:
    """After `shutdown_grace_s` each stream ends with an error in the form of its dialect, not with a cut line."""
    async with model_server(tmp_path / "home", shutdown_grace_s=1) as server:
        await server.model("m", tokens=ENDLESS, step_s=0.005)
        async with server.stream("m") as stream, server.stream("m", "openai") as other:
            await stream.first_text()
            await other.first_text()
            server.process.terminate()
            (_, told), (_, others_told) = await asyncio.gather(stream.rest(), other.rest())
        check_errors("native", told)
        check_errors("openai", others_told)
        assert await asyncio.to_thread(server.process.wait, 60) == 0


# Clients that leave, and time that is up


async def test_a_client_that_leaves_before_the_first_token_frees_the_worker(
    server: ModelServer, tmp_path: Path
) -> None:
    """Streamed or not: the worker is idle although its run never got anywhere; its one slot takes the next request."""
    gate = tmp_path / "gate"
    await server.model("m", max_runs=1, step_gate=str(gate))
    for form in DIALECTS.values():
        for streamed in (False, True):
            body = {**form.body("m"), "stream": streamed}
            asking = asyncio.ensure_future(server.admin.post(form.path, json=body))
            await server.await_runs("m", 1)
            asking.cancel()
            await server.await_idle("m")
    gate.touch()
    assert (await server.chat("m")).status_code == 200
    await server.await_rows("cancelled", 2 * len(DIALECTS))


async def test_a_client_that_leaves_in_the_middle_frees_the_worker(server: ModelServer) -> None:
    """The run is over, in every dialect; its one slot takes the next request."""
    await server.model("m", max_runs=1, tokens=ENDLESS, step_s=0.005)
    for dialect in DIALECTS:
        async with server.stream("m", dialect) as stream:
            await stream.first_text()
            assert await server.in_flight("m") == 1, dialect
        await server.await_idle("m")
        row = await server.decision(stream.headers["x-serai-decision"])
        assert row["document"]["outcome"] == "cancelled", dialect
    assert (await server.chat("m", max_tokens=1)).status_code == 200


async def test_a_client_that_leaves_the_queue_leaves_nothing_behind(server: ModelServer, tmp_path: Path) -> None:
    """Behind one that runs, two wait; both leave, and the first gets its answer."""
    gate = tmp_path / "gate"
    await server.model("m", max_runs=1, step_gate=str(gate))
    first = asyncio.ensure_future(server.chat("m"))
    await server.await_runs("m", 1)
    waiting = [asyncio.ensure_future(server.chat("m")) for _ in range(2)]

    def so_many_wait(count: float) -> Any:
        async def asked() -> bool:
            return (await server.figures())["serai_runtime_waiting{}"] == count

        return asked

    await eventually(so_many_wait(2))
    for one in waiting:
        one.cancel()
    await eventually(so_many_wait(0))
    assert await server.in_flight("m") == 1
    gate.touch()
    assert (await first).status_code == 200
    await server.await_idle("m")


async def test_a_client_that_leaves_during_a_load_that_only_it_wanted_ends_the_load(
    server: ModelServer, tmp_path: Path
) -> None:
    """The worker is gone, there is no cooldown, and the next request loads it."""
    gate = tmp_path / "gate"
    await server.model("slow", load_gate=str(gate))
    asking = asyncio.ensure_future(server.chat("slow"))
    pid = await loading_pid(server, "slow")
    asking.cancel()
    await eventually(gone_from_ps(server, "slow"))
    await all_gone([pid])
    gate.touch()
    assert (await server.chat("slow")).status_code == 200


async def test_time_that_is_up_is_408_with_what_was_generated_so_far(server: ModelServer) -> None:
    """In every dialect that has a word for it; the worker is idle afterwards."""
    await server.model("m", tokens=ENDLESS, step_s=0.02)
    await said(server.admin.post("/models/m/load"))
    whole = await server.chat("m", timeout=2)
    assert whole.status_code == 408, whole.text
    assert whole.headers["x-should-retry"] == "false"
    partial = whole.json()["error"]["details"]["partial"]
    assert partial["message"]["content"].startswith("User: one two Assistant:")
    assert partial["done_reason"] == "timeout"
    assert whole.headers["x-serai-model"] == "m@1.0.0"
    await server.await_idle("m")
    async with server.stream("m", timeout=2) as stream:
        frames = [frame async for frame in stream.frames()]
    assert frames[0]["delta"]["content"]
    assert (frames[-1]["done"], frames[-1]["done_reason"]) == (True, "timeout")
    assert frames[-1]["error"]["code"] == "DEADLINE_EXCEEDED"
    await server.await_idle("m")
    row = await server.decision(stream.headers["x-serai-decision"])
    assert (row["document"]["outcome"], row["document"]["failure"]) == ("failed", "timeout")


async def test_time_that_is_up_in_the_dialects(server: ModelServer) -> None:
    """The bound is the service's; OpenAI's clients get 408 with the partial answer, streams end in their own words."""
    await server.model("m", tokens=ENDLESS, step_s=0.02)
    await server.service("s", "m@1.0.0", limits={"timeout_s": 2})
    await said(server.admin.post("/models/m/load"))
    whole = await server.admin.post("/v1/chat/completions", json=v1_body("s"))
    assert whole.status_code == 408, whole.text
    error = whole.json()["error"]
    assert (error["type"], error["code"]) == ("timeout", "timeout")
    assert error["partial"][0]["content"].startswith("User:")
    assert whole.headers["x-should-retry"] == "false"
    for dialect in DIALECTS:
        async with server.stream("s", dialect) as stream:
            text, errors = await stream.rest()
        assert text, dialect
        assert len(errors) == 1, dialect
    await server.await_idle("m")
    for wrong in (0, 601, -1):
        assert (await server.chat("m", timeout=wrong)).status_code == 422


async def test_time_that_is_up_while_a_load_goes_on(server: ModelServer, tmp_path: Path) -> None:
    """The caller is told that it waited in vain; the load goes on, and the next one profits of it."""
    gate = tmp_path / "gate"
    await server.model("slow", load_gate=str(gate))
    late = await server.chat("slow", timeout=2)
    assert late.status_code in (408, 503), late.text
    pid = await loading_pid(server, "slow")
    gate.touch()
    assert (await server.chat("slow")).status_code == 200
    assert await server.pid("slow") == pid


# Others


async def test_a_load_that_waits_delays_nobody_else(server: ModelServer, tmp_path: Path) -> None:
    """Other models load, run and leave meanwhile, and /health and /ps answer."""
    gate = tmp_path / "gate"
    await server.model("slow", load_gate=str(gate))
    await server.model("other")
    asking = asyncio.ensure_future(server.chat("slow"))
    await loading_pid(server, "slow")
    for _ in range(20):
        assert (await server.chat("other")).status_code == 200
        health = await server.admin.get("/health")
        assert (health.status_code, health.json().get("status")) == (200, "healthy"), health.text
    await said(server.admin.post("/models/other/unload"))
    await said(server.admin.post("/models/other/load"))
    assert not asking.done()
    slow = await server.loaded("slow")
    assert slow is not None
    assert slow["state"] == "loading"
    gate.touch()
    assert (await asking).status_code == 200


async def test_a_flood_by_one_key_leaves_the_other_served(server: ModelServer, tmp_path: Path) -> None:
    """One answer at a time: behind forty of one key, what another asks comes among the first."""
    gate = tmp_path / "gate"
    await server.model("m", max_runs=1, step_gate=str(gate))
    flooding, other = await server.user("flood"), await server.user("other")
    order: list[str] = []

    async def ask(name: str, client: httpx.AsyncClient) -> None:
        answer = await server.chat("m", client=client)
        assert answer.status_code == 200, answer.text
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(ask("flood", flooding))

        def so_many_wait(count: float) -> Any:
            async def asked() -> bool:
                return (await server.figures())["serai_runtime_waiting{}"] == count

            return asked

        await eventually(so_many_wait(39))
        for _ in range(3):
            group.create_task(ask("other", other))
        await eventually(so_many_wait(42))
        gate.touch()
    assert len(order) == 43
    places = [at for at, name in enumerate(order) if name == "other"]
    # The one that runs, then the two keys in turn. Two answers may overtake each other on their way here.
    assert max(places) <= 9, order


# Helpers


def v1_body(model: str, **values: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "one two"}], **values}


def gone_from_ps(server: ModelServer, model: str) -> Any:
    async def gone() -> bool:
        return await server.loaded(model) is None

    return gone


async def loading_pid(server: ModelServer, model: str) -> int:
    """Return the process of a model that is being loaded, when it is there."""
    found: list[int] = []

    async def is_loading() -> bool:
        one = await server.loaded(model)
        if one is not None and one["state"] == "loading" and one["pid"]:
            found.append(one["pid"])
        return bool(found)

    await eventually(is_loading)
    assert is_alive(found[0])
    return found[0]
