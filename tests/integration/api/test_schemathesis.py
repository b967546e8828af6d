"""A fuzzer over the OpenAPI document, as every role, against a real server: no defect, and the document is true."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema

from support.process import ServerProcess, serving
from support.scrub import check_error

EXAMPLES = {"anonymous": 2, "viewer": 3, "user": 3, "moderator": 5, "admin": 5}
"""Random examples for each operation."""
AT_THE_BOUNDS = {"user", "admin"}
"""Who also tries the bounds of every parameter, one by one, right and wrong: some 3000 requests."""
SEED = 20_260_101
CHECKS = {
    "status_code_conformance": {"enabled": True},
    "content_type_conformance": {"enabled": True},
    "response_schema_conformance": {"enabled": True},
    "response_headers_conformance": {"enabled": True},
    "negative_data_rejection": {"enabled": True, "expected-statuses": ["4xx"]},
    "missing_required_header": {"enabled": True},
    "unsupported_method": {"enabled": True},
    "allow_header_conformance": {"enabled": True},
    "ignored_auth": {"enabled": True},
}
"""Not `positive_data_acceptance`: much that fits a schema is refused for what it means."""
ALLOWED_5XX = {"NO_CANDIDATE", "NO_PROMPT_WRITER"}
"""A service without a model that may answer, and no chat service at all: states of things, told with the reason."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("fuzzed") / "home", rate_limits="off") as server:
        yield server


def document(server: ServerProcess) -> dict[str, Any]:
    """Return the OpenAPI document, without rehearsals: those answer in a form of their own (tested elsewhere)."""
    with server.client() as client:
        told: dict[str, Any] = client.get("/openapi.json").json()
    for methods in told["paths"].values():
        for operation in methods.values():
            given = operation.get("parameters", [])
            operation["parameters"] = [one for one in given if one["name"] != "dry_run"]
    return told


def key_for(server: ServerProcess, role: str) -> dict[str, str]:
    """Return the headers of a caller of that role, made for this run."""
    if role == "anonymous":
        return {}
    with server.client() as client:
        user = client.post("/users", json={"name": f"fuzzing-{role}", "role": role}).json()
        made = client.post("/keys", json={"name": "fuzzing", "user_id": user["id"]}).json()
    return {"Authorization": f"Bearer {made['key']}"}


@pytest.mark.parametrize("role", EXAMPLES)
@pytest.mark.timeout(240)
def test_no_input_makes_a_server_error(fuzzed: ServerProcess, role: str) -> None:
    """What is right is answered as documented, what is wrong is 4xx in the one form; nothing is a 5xx."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "base-url": fuzzed.url,
            "workers": 1,
            "headers": key_for(fuzzed, role),
            "generation": {
                "max-examples": EXAMPLES[role],
                "deterministic": True,
                "database": "none",
                "no-shrink": True,
            },
            "phases": {
                "examples": {"enabled": False},
                "coverage": {"enabled": role in AT_THE_BOUNDS},
                "stateful": {"enabled": False},
            },
            "checks": {"enabled": False, **CHECKS},
        }
    )
    schema = schemathesis.openapi.from_dict(document(fuzzed), config=config)
    problems: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            problems.update(judge(event, statuses))
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems[f"the fuzzer failed: {event}"] += 1
    assert not problems, "\n".join(f"{count} × {problem}" for problem, count in problems.items())
    assert sum(statuses.values()) > 100
    assert fuzzed.alive()
    assert (fuzzed.home / "logs" / "errors.log").read_text() == ""


ALSO_IDS = {"GET /jobs/webhook-secret", "POST /images/archive", "POST /images/generations"}
"""Paths whose last word may also be the id of something, for which there are further methods."""


def is_known(label: str, check: str) -> bool:
    """Say whether the fuzzer is wrong: it holds the methods of the other path against this one."""
    return label in ALSO_IDS and check == "allow_header_conformance"


def judge(event: events.ScenarioFinished, statuses: Counter[int]) -> Iterator[str]:
    """Yield what is wrong with the answers of one run of one operation."""
    for number, interaction in event.recorder.interactions.items():
        if interaction.response is None:
            yield f"{event.label}: no answer"
            continue
        response, request = interaction.response, interaction.request
        statuses[response.status_code] += 1
        body = response.content or b""
        if response.status_code >= 500 and not any(code.encode() in body for code in ALLOWED_5XX):
            yield f"{request.method} {request.uri}: {response.status_code} {body[:300]!r}"
        if response.status_code >= 400 and request.method != "HEAD":
            kind = response.headers.get("content-type", [""])[0]
            said = f"{request.uri} {(request.body or b'').decode('utf-8', 'replace')}"
            path = request.uri.removeprefix("http://").partition("/")[2].partition("?")[0]
            check_error(response.status_code, kind, body, path=f"/{path}", said=said)
        for check in event.recorder.checks.get(number, ()):
            if (
                check.status is Status.FAILURE
                and check.failure_info is not None
                and not is_known(event.label, check.name)
            ):
                yield f"{event.label}: {check.name}: {check.failure_info.failure}: {request.method} {request.uri[:300]}"
