"""The registry's part of the demo: a version's life, a service over it, and what is refused."""

from typing import Any

from serai.cli.demo import DemoFailed, Stage

MODEL, SERVICE = "demo-chat", "demo-assistant"
_VERSIONS = f"/models/{MODEL}/versions"


def versions_are_made_and_published(stage: Stage) -> str:
    """A model gets versions, and a published one cannot change."""
    source = {"kind": "package", "name": "demo"}
    card = {"id": MODEL, "task": "chat", "version": "1.9.0", "licence": "MIT", "source": source}
    stage.call("POST", "/models", json=card, expect=201)
    stage.call("POST", _VERSIONS, json={"version": "1.10.0", "release_notes": "Answers shorter."}, expect=201)
    newest = stage.call("GET", f"/models/{MODEL}")["default_version"]
    _check(newest == "1.10.0", f"the newest of 1.9.0 and 1.10.0 is {newest}")
    stage.call("PATCH", f"{_VERSIONS}/1.10.0/publish")
    refused = stage.call("PATCH", f"{_VERSIONS}/1.10.0", json={"engine": "other"}, expect=403)
    _check(refused["error"]["code"] == "IMMUTABLE_VERSION", f"a change of it answered {refused}")
    return f"1.10.0 is newer than 1.9.0, published, and {refused['error']['code']}"


def a_service_is_switched(stage: Stage) -> str:
    """A service is bound to a version, then to another."""
    bound = {"id": SERVICE, "task": "chat", "model_id": MODEL, "model_version": "1.9.0"}
    stage.call("POST", "/services", json=bound, expect=201)
    _check(_answering(stage)["version"] == "1.9.0", "the service does not answer with what it was bound to")
    stage.call("PATCH", f"/services/{SERVICE}/version", json={"version": "1.10.0", "reason": "shorter answers"})
    told = _answering(stage)
    _check((told["version"], told["reason"]) == ("1.10.0", "bound"), f"after the switch it explains {told}")
    return str(told["explanation"])


def what_is_used_stays(stage: Stage) -> str:
    """What a service uses is not deprecated under it."""
    refused = stage.call("PATCH", f"{_VERSIONS}/1.10.0/deprecate", expect=409)["error"]
    _check((refused["code"], refused["details"]) == ("VERSION_IN_USE", [SERVICE]), f"it was told {refused}")
    return str(refused["message"])


def a_rollback(stage: Stage) -> str:
    """One call goes back, and the history tells what answered when."""
    stage.call("POST", f"/services/{SERVICE}/rollback", json={"reason": "too short"})
    _check(_answering(stage)["version"] == "1.9.0", "the rollback did not go back")
    lines = stage.call("GET", f"/services/{SERVICE}/history")["answered"]
    answered = [line["versions"] for line in lines]
    _check(answered == [[f"{MODEL}@{one}"] for one in ("1.9.0", "1.10.0", "1.9.0")], f"the history says {answered}")
    then = stage.call("GET", f"/services/{SERVICE}/history", params={"at": lines[1]["since"]})["answered"]
    _check([line["versions"] for line in then] == [lines[1]["versions"]], f"the history at a time says {then}")
    return f"{lines[0]['versions'][0]} answers; at {lines[1]['since']} it was {then[0]['versions'][0]}"


def an_alias_moves_only_from_where_it_is(stage: Stage) -> str:
    """An alias moves only from where its mover believes it to be."""
    path = f"/models/{MODEL}/aliases/production"
    stage.call("PUT", path, json={"to": "1.9.0", "expected_from": None})
    lost = stage.call("PUT", path, json={"to": "1.10.0", "expected_from": "1.10.0"}, expect=409)["error"]
    _check(lost["code"] == "ALIAS_MOVED", f"a wrong expectation was told {lost}")
    moved = stage.call("PUT", path, json={"to": "1.10.0", "expected_from": "1.9.0"})
    _check((moved["version"], moved["epoch"]) == ("1.10.0", 2), f"the move answered {moved}")
    return f"{lost['message']} With the right one it moved to {moved['version']}."


STEPS = (
    versions_are_made_and_published,
    a_service_is_switched,
    what_is_used_stays,
    a_rollback,
    an_alias_moves_only_from_where_it_is,
)


def _answering(stage: Stage) -> dict[str, Any]:
    told: dict[str, Any] = stage.call("GET", f"/services/{SERVICE}/explain")
    return told


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailed(otherwise)
