"""The part of the demo in which models answer: a chain, a switch, a pull, a chat that streams."""

from serai.cli.demo import Stage, check, events_of
from serai.cli.demo_hub import REPOSITORY

QUESTION = "How do I pull a model?"
SERVICE = "demo-talk"
_FAKE = {"task": "chat", "version": "1.0.0", "engine": "fake", "source": {"kind": "package", "name": "fake"}}


def a_chain_is_walked(stage: Stage) -> str:
    """A model that cannot be loaded is passed over for the next of its chain, and the answer says so."""
    stage.call("POST", "/models", json={**_FAKE, "id": "demo-broken", "engine_options": {"fail": "load"}}, expect=201)
    stage.call("POST", "/models", json={**_FAKE, "id": "demo-spare"}, expect=201)
    chain = {"id": SERVICE, "task": "chat", "model_id": "demo-broken", "fallback": [{"model": "demo-spare"}]}
    stage.call("POST", "/services", json=chain, expect=201)
    answer = stage.call("POST", "/chat", json={"service": SERVICE, "messages": [_user("hello")]})
    decision = answer["decision"]
    check((decision["model"], decision["reason"]) == ("demo-spare", "fallback_error"), f"the decision is {decision}")
    return str(decision["explanation"])


def a_model_is_pulled(stage: Stage) -> str:
    """A repository is fetched from a hub on this machine, checked, registered and loaded."""
    accepted = stage.call("POST", "/pull", json={"model": REPOSITORY, "name": "demo-pulled", "init": True}, expect=202)
    last = list(events_of(stage, "GET", f"/jobs/{accepted['job_id']}/events"))[-1]
    check(last["type"] == "done", f"the pull ended with {last}")
    result = last["result"]
    loaded = [one for one in stage.call("GET", "/ps")["items"] if one["model"] == "demo-pulled"]
    check(len(loaded) == 1, "what was pulled is not in memory")
    return f"{result['fetched_bytes']} bytes, {loaded[0]['engine']}, {loaded[0]['bytes'] // 2**20} MiB in memory"


def a_chat_streams(stage: Stage) -> str:
    """A real model answers word by word, and each piece comes as it is made."""
    body = {"model": "demo-pulled", "messages": [_user(QUESTION)], "stream": True, "temperature": 0}
    frames = list(events_of(stage, "POST", "/chat", json=body))
    pieces = [frame["delta"].get("content") or "" for frame in frames]
    check(len(frames) > 3 and frames[-1]["done"], f"the stream was {frames[-2:]}")
    check("serai pull" in "".join(pieces), f"the answer was {''.join(pieces)!r}")
    return f"{QUESTION} → {''.join(pieces).strip()} ({frames[-1]['usage']['completion_tokens']} tokens)"


def the_dialects_agree(stage: Stage) -> str:
    """The same question in OpenAI's form and in Ollama's gets the same answer."""
    openai = stage.call(
        "POST",
        "/v1/chat/completions",
        json={"model": "demo-pulled", "messages": [_user(QUESTION)], "temperature": 0},
    )
    ollama = stage.call(
        "POST",
        "/api/chat",
        json={"model": "demo-pulled", "messages": [_user(QUESTION)], "stream": False, "options": {"temperature": 0}},
    )
    one, other = openai["choices"][0]["message"]["content"], ollama["message"]["content"]
    check(one == other, f"they say {one!r} and {other!r}")
    return f"{openai['usage']['total_tokens']} tokens counted by one, {ollama['eval_count']} written by the other"


STEPS = (a_chain_is_walked, a_model_is_pulled, a_chat_streams, the_dialects_agree)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
