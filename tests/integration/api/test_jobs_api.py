"""Jobs through the API: the whole life of a job, on both databases."""

import asyncio
import hashlib
from typing import Any

import httpx
import pytest

from support.api import Running

pytestmark = pytest.mark.anyio

TEXT = {"kind": "digest", "payload": {"text": "hello"}}
SHA256 = hashlib.sha256(b"hello").hexdigest()


async def submit(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post("/jobs", json={**TEXT, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """Follow the job to its end by its events, then return it."""
    answer = await client.get(f"/jobs/{job_id}/events")
    assert answer.status_code == 200, answer.text
    return dict((await client.get(f"/jobs/{job_id}")).json())


def numbers(stream: str) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in stream.splitlines() if line.startswith("id: ")]


async def test_a_job_runs_to_its_result(server_on_both: Running) -> None:
    """The 202 names where to look; the job ends succeeded, with result, times and one attempt."""
    answer = await server_on_both.admin.post("/jobs", json=TEXT)
    told = answer.json()
    assert told["status_url"] == f"/jobs/{told['job_id']}"
    assert told["events_url"] == f"/jobs/{told['job_id']}/events"
    job = await ended(server_on_both.admin, told["job_id"])
    assert (job["status"], job["result"], job["error"], job["attempts"]) == ("succeeded", {"sha256": SHA256}, None, 1)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


async def test_events_are_numbered_without_gaps_and_end_once(server_on_both: Running) -> None:
    """Stored events count from 1, and the last frame is the one `done`."""
    job_id = await submit(server_on_both.admin)
    stream = (await server_on_both.admin.get(f"/jobs/{job_id}/events")).text
    found = numbers(stream)
    assert found == list(range(1, len(found) + 1))
    assert stream.count("event: done") == 1
    assert stream.rstrip().splitlines()[-2] == "event: done"


async def test_last_event_id_resumes_behind_it(server: Running) -> None:
    """A client that saw event 1 gets the events from 2 on, by header and by parameter."""
    job_id = await submit(server.admin)
    await ended(server.admin, job_id)
    every = numbers((await server.admin.get(f"/jobs/{job_id}/events")).text)
    by_header = await server.admin.get(f"/jobs/{job_id}/events", headers={"last-event-id": "1"})
    by_parameter = await server.admin.get(f"/jobs/{job_id}/events?after=1")
    assert numbers(by_header.text) == numbers(by_parameter.text) == every[1:]


@pytest.mark.parametrize("last", ["-1", "99", str(2**63), "9" * 50, "x", "1.5", "", "１"])
async def test_an_event_id_of_another_stream_is_refused(server: Running, last: str) -> None:
    """What this job never numbered is 422, before the stream opens."""
    job_id = await submit(server.admin)
    await ended(server.admin, job_id)
    answer = await server.admin.get(f"/jobs/{job_id}/events", headers={"last-event-id": last.encode()})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["details"][0]["field"] == "Last-Event-ID"
    behind = await server.admin.get(f"/jobs/{job_id}/events?after=99")
    assert behind.json()["error"]["details"][0]["field"] == "after"


async def test_an_idempotency_key_gives_the_same_job(server_on_both: Running) -> None:
    """Field and header mean the same; another body under the key is 422, and so are two keys that differ."""
    admin = server_on_both.admin
    first = await submit(admin, idempotency_key="k")
    assert (await admin.post("/jobs", json=TEXT, headers={"idempotency-key": "k"})).json()["job_id"] == first
    other = await admin.post("/jobs", json={**TEXT, "priority": 1}, headers={"idempotency-key": "k"})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "IDEMPOTENCY_MISMATCH")
    both = await admin.post("/jobs", json={**TEXT, "idempotency_key": "a"}, headers={"idempotency-key": "b"})
    assert both.status_code == 422
    assert len((await admin.get("/jobs")).json()["items"]) == 1


async def test_fifty_posts_with_one_key_at_once_make_one_job(server_on_both: Running) -> None:
    """Under concurrency too there is one job."""
    posts = (server_on_both.admin.post("/jobs", json={**TEXT, "idempotency_key": "k"}) for _ in range(50))
    answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1


async def test_the_same_key_of_two_owners_is_two_keys(server: Running) -> None:
    """Keys belong to their owner."""
    ada, bob = await server.make_user("ada", "user"), await server.make_user("bob", "user")
    assert await submit(ada, idempotency_key="k") != await submit(bob, idempotency_key="k")


async def test_another_owners_job_does_not_exist(server: Running) -> None:
    """Every call on another's job is the 404 of a job that never was; an admin sees it."""
    ada, bob = await server.make_user("ada", "user"), await server.make_user("bob", "user")
    job_id = await submit(ada)
    calls = [("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")]
    for method, tail in calls:
        answer = await bob.request(method, f"/jobs/{job_id}{tail}")
        never = await bob.request(method, f"/jobs/job_{'0' * 26}{tail}")
        assert answer.status_code == never.status_code == 404
        assert answer.json()["error"]["code"] == never.json()["error"]["code"] == "JOB_NOT_FOUND"
    assert (await bob.get("/jobs")).json()["items"] == []
    assert (await server.admin.get(f"/jobs/{job_id}")).status_code == 200


async def test_cancel_after_the_end_is_409_with_the_result(server: Running) -> None:
    """The conflict carries what the job made."""
    job_id = await submit(server.admin)
    await ended(server.admin, job_id)
    answer = await server.admin.post(f"/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "JOB_FINISHED")
    assert answer.json()["error"]["details"]["result"] == {"sha256": SHA256}


async def test_an_unknown_kind_is_refused_at_the_door(server: Running) -> None:
    """422 names the kinds there are, and nothing is stored."""
    answer = await server.admin.post("/jobs", json={"kind": "nope"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "UNKNOWN_JOB_KIND")
    assert "digest" in answer.json()["error"]["hint"]
    assert (await server.admin.get("/jobs")).json()["items"] == []


@pytest.mark.parametrize("payload", [{}, {"text": 1}, {"text": "a", "blob": "b"}, {"blob": "../x"}, {"texts": "a"}])
async def test_a_payload_that_could_never_run_is_refused(server: Running, payload: dict[str, Any]) -> None:
    """The runner's own check speaks before anything is stored."""
    answer = await server.admin.post("/jobs", json={"kind": "digest", "payload": payload})
    assert answer.status_code == 422
    assert answer.json()["error"]["details"][0]["field"].startswith("payload")


async def test_a_blob_can_be_digested_by_its_holder_alone(server: Running) -> None:
    """The digest of one's own file works; another's file does not exist for the job."""
    ada, bob = await server.make_user("ada", "user"), await server.make_user("bob", "user")
    file = (await ada.post("/files", content=png())).json()
    mine = await ended(ada, await submit(ada, payload={"blob": file["sha256"]}))
    assert mine["result"] == {"sha256": file["sha256"]}
    foreign = await ended(bob, await submit(bob, payload={"blob": file["sha256"]}))
    assert (foreign["status"], foreign["error"]["code"]) == ("failed", "BLOB_NOT_FOUND")


async def test_a_failed_job_can_be_tried_again(server: Running) -> None:
    """Retry makes a new job that names the old one."""
    job = await ended(server.admin, await submit(server.admin, payload={"blob": "0" * 64}))
    assert job["status"] == "failed"
    again = await server.admin.post(f"/jobs/{job['id']}/retry")
    assert again.status_code == 202, again.text
    assert (await server.admin.get(again.json()["status_url"])).json()["retry_of"] == job["id"]


async def test_a_job_that_succeeded_cannot_be_retried_and_can_be_deleted(server: Running) -> None:
    """409, then 204, then 404."""
    job_id = await submit(server.admin)
    await ended(server.admin, job_id)
    assert (await server.admin.post(f"/jobs/{job_id}/retry")).status_code == 409
    assert (await server.admin.delete(f"/jobs/{job_id}")).status_code == 204
    assert (await server.admin.get(f"/jobs/{job_id}")).status_code == 404


async def test_the_list_filters_and_pages(server_on_both: Running) -> None:
    """Newest first; status, kind and time filter; the cursor walks every job once."""
    admin = server_on_both.admin
    made = [await submit(admin, payload={"text": str(number)}) for number in range(5)]
    for job_id in made:
        await ended(admin, job_id)
    seen, cursor = [], None
    while True:
        page = (await admin.get("/jobs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        seen += [job["id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    assert (await admin.get("/jobs?status=queued")).json()["items"] == []
    assert len((await admin.get("/jobs?status=succeeded&kind=digest")).json()["items"]) == 5
    assert (await admin.get("/jobs?kind=other")).json()["items"] == []
    later = (await admin.get("/jobs", params={"from": "2100-01-01T00:00:00Z"})).json()
    assert later["items"] == []


async def test_a_full_queue_is_503_with_retry_after(tmp_path: Any) -> None:
    """Beyond job_max_queued the door says when to come back."""
    from support.api import running

    async with running(tmp_path / "home", job_max_queued=1, job_concurrency=1) as server:
        await server.app.state.parts.database.run(_block_claims)
        assert (await server.admin.post("/jobs", json=TEXT)).status_code == 202
        full = await server.admin.post("/jobs", json=TEXT)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "QUEUE_FULL")
        assert int(full.headers["retry-after"]) >= 1


async def test_metrics_tell_the_queue(server: Running) -> None:
    """The figures of the queue are exported under their documented names."""
    from serai.jobs import store
    from serai.jobs.metrics import METRICS, JobMetrics

    await ended(server.admin, await submit(server.admin))
    parts = server.app.state.parts
    metrics = JobMetrics()
    metrics.update(await parts.database.read(store.figures, parts.clock))
    found = {family.name: family for family in metrics.collect()}
    assert set(found) == set(METRICS)
    assert [sample.labels for sample in found["serai_jobs_queued"].samples] == [{"kind": "digest"}]
    assert "serai_jobs_queued" in (await server.admin.get("/metrics")).text


def _block_claims(connection: Any) -> None:
    """Let nothing be claimed in this test: every job waits for a minute."""
    import sqlalchemy as sa

    connection.execute(
        sa.text(
            "CREATE TRIGGER hold AFTER INSERT ON jobs BEGIN "
            "UPDATE jobs SET run_at = NEW.created_at + 60000000 WHERE id = NEW.id; END"
        )
    )


def png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "http://192.168.0.1/hook", "http://localhost:1/hook"])
async def test_a_webhook_that_may_never_be_called_is_refused(server: Running, url: str) -> None:
    """Where no DNS is needed to know it, the job is not taken: its owner would wait for the message in vain."""
    answer = await server.admin.post("/jobs", json={**TEXT, "webhook_url": url})
    error = answer.json()["error"]
    assert (answer.status_code, error["details"][0]["field"]) == (422, "webhook_url")
    assert "outbound_allow" in error["hint"]
    assert (await server.admin.get("/jobs")).json()["items"] == []
