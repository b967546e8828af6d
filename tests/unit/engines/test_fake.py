"""The engine without a model: what it answers, and how it goes wrong when it is told to."""

import os
import signal
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest

from serai.clock import ManualClock
from serai.engines.base import AdapterUse, EngineSpec, Run
from serai.engines.fake import Fake
from serai.engines.tasks import AnyTask, Array, Chat, Embed, Fetch, Generate, Grammar, Infer, Sampling
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import Done, Event, Failed, Text

SECONDS = 60


def loaded(**options: Any) -> Fake:
    engine = Fake(ManualClock())
    engine.load(EngineSpec(engine="fake", name="fake@1.0.0", options=options), lambda _: None)
    return engine


def answer(engine: Fake, task: AnyTask, *adapters: AdapterUse, run: int = 1) -> list[Event]:
    """Return all events of a task."""
    engine.start(Run(id=run, task=task, adapters=adapters))
    events: list[Event] = []
    while not events or not isinstance(events[-1], Done | Failed):
        events += [event for _, event in engine.step()]
    return events


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.delta for event in events if isinstance(event, Text) and event.index == index)


def result(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Done), events[-1]
    return events[-1].result


def generate(prompt: str, **sampling: Any) -> Generate:
    return Generate(prompt=prompt, sampling=Sampling(**sampling))


def test_it_repeats_the_prompt_word_by_word() -> None:
    """Each word is an event; the end tells reason and usage."""
    events = answer(loaded(), generate("one two three"))
    assert [event.delta for event in events[:-1] if isinstance(event, Text)] == ["one", " two", " three"]
    assert result(events)["finish_reasons"] == ["stop"]
    assert result(events)["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0}


def test_it_stops_where_it_is_told() -> None:
    """max_tokens ends with 'length', a stop text with 'stop', also one that lies across two words."""
    engine = loaded()
    short = answer(engine, generate("one two three", max_tokens=2))
    assert text_of(short) == "one two"
    assert result(short)["finish_reasons"] == ["length"]
    stopped = answer(engine, generate("one two three", stop=("o t",)))
    assert (text_of(stopped), result(stopped)["finish_reasons"]) == ("one tw", ["stop"])
    assert text_of(answer(engine, generate("one two three", stop=("e tw",)))) == "on"
    assert text_of(answer(engine, generate("one two", stop=("one",)))) == ""


def test_seeds_repeat_and_differ() -> None:
    """One seed gives one text; another seed, and another answer of the same call, another text."""
    engine = loaded()
    first = text_of(answer(engine, generate("one two three", seed=1)))
    assert first == text_of(answer(engine, generate("one two three", seed=1))) == "two three one"
    assert first != text_of(answer(engine, generate("one two three", seed=2)))
    several = answer(engine, generate("one two three", n=3))
    assert [text_of(several, index) for index in range(3)] == ["one two three", "two three one", "three one two"]
    assert len(result(several)["finish_reasons"]) == 3


def test_an_answer_can_be_as_long_as_wanted() -> None:
    """`tokens` says how long, whatever the prompt."""
    events = answer(loaded(tokens=1000), generate("a b"))
    assert result(events)["usage"]["completion_tokens"] == 1000 == len(text_of(events).split())


def test_logprobs_come_with_the_words() -> None:
    """Asked for, each word has its logprob and alternatives."""
    event = answer(loaded(), generate("one two", logprobs=2))[0]
    assert isinstance(event, Text)
    assert isinstance(event.logprobs, list)
    assert event.logprobs[0]["token"] == "one"
    assert len(event.logprobs[0]["top"]) == 2


@pytest.mark.parametrize(
    "sampling", [{"grammar": Grammar(kind="regex", value="a")}, {"logit_bias": {1: 2.0}}], ids=["grammar", "bias"]
)
def test_what_it_cannot_do_is_refused(sampling: dict[str, Any]) -> None:
    """A grammar or a bias is named, not left out."""
    with pytest.raises(InvalidInput, match=next(iter(sampling))):
        loaded().start(Run(id=1, task=generate("x", **sampling)))


def test_chats_answer_the_last_message() -> None:
    """Text and parts of text alike."""
    engine = loaded()
    parts = [{"type": "text", "text": "from parts"}, {"type": "image_url", "image_url": {}}]
    for content, expected in (("hello there", "hello there"), (parts, "from parts")):
        messages = ({"role": "system", "content": "x"}, {"role": "user", "content": content})
        assert text_of(answer(engine, Chat(messages=messages))) == expected
    for messages in ((), ({"role": "user"},)):
        with pytest.raises(InvalidInput):
            engine.start(Run(id=1, task=Chat(messages=messages)))


def test_arrays_come_back_scaled() -> None:
    """`infer` is the identity, or scale × input + offset of floating numbers."""
    numbers = Array(dtype="float32", shape=(2,), data=array("f", [1, 2]).tobytes())
    assert result(answer(loaded(), Infer(inputs={"x": numbers})))["outputs"] == {"x": numbers.document}
    scaled = result(answer(loaded(scale=2, offset=1), Infer(inputs={"x": numbers})))["outputs"]["x"]
    assert list(array("f", scaled["data"])) == [3, 5]
    for wrong in (Array(dtype="int8", shape=(2,), data=b"ab"), Array(dtype="float32", shape=(2,), data=b"abc")):
        with pytest.raises(InvalidInput, match="inputs"):
            loaded(scale=2).start(Run(id=1, task=Infer(inputs={"x": wrong})))


def test_vectors_of_like_texts_are_near() -> None:
    """Vectors have length 1, are the same each time, and nearer for texts that share words."""
    told = result(answer(loaded(dimensions=32), Embed(texts=("a red fox", "the red fox", "quite another thing"))))
    assert told["embeddings"]["shape"] == [3, 32]
    numbers = array("f", told["embeddings"]["data"])
    rows = [numbers[at * 32 : at * 32 + 32] for at in range(3)]

    def dot(a: int, b: int) -> float:
        return sum(x * y for x, y in zip(rows[a], rows[b], strict=True))

    assert dot(0, 0) == pytest.approx(1, abs=1e-5)
    assert dot(0, 1) > dot(0, 2)


def test_bodies_come_back() -> None:
    """`fetch` gives back what it was given."""
    assert result(answer(loaded(), Fetch(body={"a": 1})))["body"] == {"a": 1}


def test_a_run_can_be_fed() -> None:
    """More text goes on behind what there was; `end` ends the answer; anything else is refused."""
    engine = loaded()
    engine.start(Run(id=1, task=generate("one two")))
    engine.step()
    engine.feed(1, {"text": "three"})
    for message in ({"text": 1}, {"more": "x"}, {}):
        with pytest.raises(InvalidInput):
            engine.feed(1, message)
    words = [event.delta for _ in range(2) for _, event in engine.step() if isinstance(event, Text)]
    assert words == [" two", " three"]
    engine.feed(1, {"text": "four five"})
    engine.feed(1, {"end": True})
    assert isinstance(engine.step()[0][1], Done)
    with pytest.raises(InvalidInput):
        engine.feed(1, {"text": "late"})


def test_adapters_are_loaded_once_and_switched_per_run(tmp_path: Path) -> None:
    """Each run has its own adapters; a file is read once, and one that is missing is refused."""
    engine = loaded()
    path = tmp_path / "v1"
    path.write_bytes(b"12345")
    use = AdapterUse(id="v1", path=str(path), scale=0.5)
    assert text_of(answer(engine, generate("a b"), use)) == "a~v1:0.5 b~v1:0.5"
    assert text_of(answer(engine, generate("a b"))) == "a b"
    path.unlink()
    number = Array(dtype="float32", shape=(1,), data=array("f", [1]).tobytes())
    moved = result(answer(engine, Infer(inputs={"x": number}), use))["outputs"]["x"]
    assert list(array("f", moved["data"])) == [3.5]
    with pytest.raises(LoadFailed, match="v2") as refused:
        engine.start(Run(id=2, task=generate("a"), adapters=(AdapterUse(id="v2", path=str(path)),)))
    assert str(tmp_path) not in refused.value.message


def test_it_takes_memory() -> None:
    """`bytes` are really there, and given back by `close`."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = 256 * 1024 * 1024
    before = resident()
    engine = loaded(bytes=size)
    assert resident() - before > size * 0.9
    engine.close()
    assert resident() - before < size * 0.5


def test_a_load_waits_for_its_gate(tmp_path: Path) -> None:
    """The load goes on until the file is there."""
    gate = tmp_path / "gate"
    began, ended = threading.Event(), threading.Event()
    spec = EngineSpec(engine="fake", name="f", options={"load_gate": str(gate)})

    def load() -> None:
        Fake().load(spec, lambda _: began.set())
        ended.set()

    thread = threading.Thread(target=load)
    thread.start()
    assert began.wait(SECONDS)
    assert not ended.is_set()
    gate.touch()
    assert ended.wait(SECONDS)
    thread.join(SECONDS)


def test_runs_wait_for_their_gate(tmp_path: Path) -> None:
    """Runs stand still, and can be cancelled, until the file is there."""
    gate = tmp_path / "gate"
    engine = loaded(step_gate=str(gate))
    engine.start(Run(id=1, task=generate("one")))
    engine.start(Run(id=2, task=generate("two")))
    assert [engine.step() for _ in range(4)] == [()] * 4
    engine.cancel(2)
    gate.touch()
    assert [number for _ in range(2) for number, _ in engine.step()] == [1, 1]


def test_loading_tells_how_far_it_is() -> None:
    """The fractions rise from 0 to 1."""
    told: list[float] = []
    Fake().load(EngineSpec(engine="fake", name="f", options={"load_s": 0.001}), told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_unknown_options_are_refused() -> None:
    """A misspelt option and a wrong value are named."""
    for options in ({"byte": 1}, {"bytes": -1}, {"fail": "sometimes"}):
        with pytest.raises(InvalidInput, match="engine_options"):
            loaded(**options)


def test_failures_of_a_load() -> None:
    """A refused load and one without memory."""
    with pytest.raises(LoadFailed):
        loaded(fail="load")
    with pytest.raises(MemoryError):
        loaded(fail="load_oom")


def test_failures_of_a_run() -> None:
    """Refused at its start, as the caller's mistake, or failed alone after so many steps."""
    for fail, error in (("start", EngineFailed), ("invalid", InvalidInput)):
        with pytest.raises(error):
            loaded(fail=fail).start(Run(id=1, task=generate("x")))
    events = answer(loaded(fail="run", fail_after=2), generate("one two three"))
    assert [type(event) for event in events] == [Text, Text, Failed]


def test_failures_of_the_engine() -> None:
    """A broken step and memory that runs out come out of `step`."""
    for fail, error in (("step", RuntimeError), ("oom", MemoryError)):
        engine = loaded(fail=fail, fail_after=1)
        engine.start(Run(id=1, task=generate("one two")))
        assert len(engine.step()) == 1
        with pytest.raises(error):
            engine.step()


PROGRAM = """
import sys
from serai.engines.base import EngineSpec, Run
from serai.engines.fake import Fake
from serai.engines.tasks import Generate
engine = Fake()
engine.load(EngineSpec(engine="fake", name="f", options={"fail": sys.argv[1]}), lambda _: print("loading", flush=True))
engine.start(Run(id=1, task=Generate(prompt="x")))
print("started", flush=True)
engine.step()
print("stepped", flush=True)
"""


@pytest.mark.parametrize(("fail", "last"), [("load_crash", "loading"), ("crash", "started")])
def test_a_crash_kills_the_process(fail: str, last: str) -> None:
    """The process dies of SIGKILL, where it was told to."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, fail], capture_output=True, timeout=SECONDS, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.decode().split()[-1] == last


@pytest.mark.parametrize(("fail", "last"), [("load_hang", "loading"), ("hang", "started")])
def test_a_hang_never_returns(fail: str, last: str) -> None:
    """The process stays where it is, until it is killed."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, fail], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while process.stdout.readline().decode().strip() != last:
            pass
        assert process.poll() is None
        process.kill()
        assert process.stdout.read() == b""
