"""What a request means, and what is decided for it: pure."""

from dataclasses import replace
from typing import Any

import pytest

from serai.errors import InvalidInput, SeraiError
from serai.hub.choice import Choice, Format
from serai.hub.model import Listing, RemoteFile
from serai.pulls.errors import MissingExtra, ModelNameTaken, NothingToPull, UnsupportedWeights
from serai.pulls.model import PullPolicy, PullRequest
from serai.pulls.plan import decide, pinned_again, plan, slug, wanted
from serai.registry.errors import InvalidReference, ModelNotFound, VersionNotFound
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import File, FileSource, FolderSource, HubSource, PackageSource
from serai.registry.version import Status
from unit.registry.build import a_model, a_version

A, B = "a" * 40, "b" * 40
DIGEST = "0" * 64
GB = 10**9


class Willing:
    """A converter that could convert anything, or says why not."""

    def __init__(self, problem: SeraiError | None = None) -> None:
        self.problem = problem

    def obstacle(self, architectures: object, task: str = "") -> SeraiError | None:
        return self.problem

    async def convert(self, *_: Any) -> None:
        raise AssertionError("a plan converts nothing")


def request(model: str, **values: Any) -> PullRequest:
    return PullRequest.of({"model": model, **values})


def draft(model: str, source: Any, number: str = "1.0.0", **values: Any) -> Any:
    return a_version(model, number, status=Status.DRAFT, source=source, files=(), **values)


def snapshot(*versions: Any, **cards: Any) -> RegistrySnapshot:
    ids = {version.model_id for version in versions}
    models = [a_model(id_, lookup_names=cards.get(id_, ())) for id_ in ids]
    return RegistrySnapshot.build(models=models, versions=versions, rules=RegistryRules())


def listing(source: Any = None, *, size: int = GB, parameters: int | None = None, **names: int) -> Listing:
    files = names or {"model.safetensors": size, "config.json": 10}
    return Listing(
        source=source or HubSource(repo="acme/tiny", revision=A),
        name="acme/tiny",
        files=tuple(RemoteFile(path=name.replace("__", "."), size=size) for name, size in files.items()),
        parameters=parameters,
    )


EMPTY = RegistrySnapshot.build(models=(), versions=(), rules=RegistryRules())


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "payload"),
        ({"model": "a/b", "more": 1}, "payload"),
        ({"model": 5}, "payload"),
        ({"model": "a/b", "quantize": "q5"}, "payload"),
        ({"model": "a/b", "init": "yes"}, "payload"),
        ({"model": "a/b", "name": "No Id"}, "name"),
        ({"model": "a/b", "revision": "../main"}, "revision"),
        ({"model": "a/b", "revision": "-x"}, "revision"),
        ({"model": "folder:root/x", "revision": "main"}, "revision"),
        ({"model": "folder:root/../x"}, "model"),
        ({"model": "folder:root"}, "model"),
        ({"model": "folder:/etc/x"}, "model"),
        ({"model": "https://example.com/x.safetensors"}, "model"),
        ({"model": f"https://example.com/x#sha256={'A' * 64}"}, "model"),
    ],
)
def test_what_could_never_be_pulled_is_refused(payload: dict[str, Any], field: str) -> None:
    """Unknown fields and forms are refused by name, before the job is stored."""
    with pytest.raises(InvalidInput) as refused:
        PullRequest.of(payload)
    assert refused.value.details[0]["field"] == field  # type: ignore[index,call-overload]


@pytest.mark.parametrize("model", ["", "a b", "a/b/c", "file:///etc/passwd", "s3://x/y", "../x"])
def test_a_name_of_no_form_is_refused(model: str) -> None:
    """What is neither name nor source is not guessed at."""
    with pytest.raises(InvalidReference):
        PullRequest.of({"model": model})


def test_the_forms_of_a_source() -> None:
    """A folder, an address with a digest, a hub's name, an id."""
    assert request("folder:root/a/b").source() == FolderSource(root="root", path="a/b")
    url = "https://example.com/a.safetensors"
    assert request(f"{url}#sha256={DIGEST}").source() == FileSource(url=url, sha256=DIGEST)
    assert wanted(EMPTY, request("acme/tiny")).source == HubSource(repo="acme/tiny", revision="main")
    assert wanted(EMPTY, request("acme/tiny", revision="v1")).source == HubSource(repo="acme/tiny", revision="v1")
    with pytest.raises(ModelNotFound):
        wanted(EMPTY, request("tiny"))


def test_a_draft_that_waits_is_what_a_name_means() -> None:
    """By id, by lookup name, by version: the commit is the one that the card names, unless another is asked for."""
    source = HubSource(repo="Acme/Tiny", revision=A)
    state = snapshot(draft("tiny", source), tiny=("acme/tiny",))
    for name in ("tiny", "Acme/Tiny", "acme/TINY", "tiny@1.0.0"):
        found = wanted(state, request(name))
        assert (found.source, found.model_id, found.draft) == (source, "tiny", "1.0.0")
    assert wanted(state, request("tiny", revision="main")).source == HubSource(repo="Acme/Tiny", revision="main")
    with pytest.raises(VersionNotFound):
        wanted(state, request("tiny@9.9.9"))


def test_a_model_that_is_here_means_its_newest_commit() -> None:
    """Without a draft, pulling again asks for what the repository has now."""
    files = (File(path="x", size=1, sha256=DIGEST),)
    state = snapshot(a_version("tiny", "1.0.0", source=HubSource(repo="acme/tiny", revision=A), files=files))
    assert wanted(state, request("tiny")).source == HubSource(repo="acme/tiny", revision="main")
    assert wanted(state, request("tiny@1.0.0")).source == HubSource(repo="acme/tiny", revision=A)


def test_what_ships_with_the_package_is_not_pulled() -> None:
    """A model without a source to fetch says so."""
    with pytest.raises(NothingToPull):
        wanted(snapshot(a_version("tiny", "1.0.0", source=PackageSource(name="tiny"))), request("tiny"))


def test_leave_is_given_to_one_draft_for_its_source() -> None:
    """Pickles and code are allowed for the draft that an admin named, and for no other pull."""
    allowed = draft("tiny", HubSource(repo="acme/tiny"), allow_pickle=True, allow_remote_code=True)
    state = snapshot(allowed, tiny=("acme/tiny",))
    assert wanted(state, request("tiny")).allow_pickle
    other = wanted(state, request("acme/other", name="tiny"))
    assert not other.allow_pickle
    assert not other.allow_remote_code
    assert other.draft is None
    assert not wanted(state, request("tiny", name="elsewhere")).allow_pickle


@pytest.mark.parametrize(
    ("quantize", "size", "policy", "expected"),
    [
        ("auto", 14 * GB, {}, "int8"),
        ("auto", 14 * GB + 1, {}, "int4"),
        ("auto", 10 * GB, {"budget_bytes": 6 * GB}, "int8"),
        ("auto", 10 * GB, {"budget_bytes": 5 * GB}, "int4"),
        ("auto", 10 * GB, {"device": "cuda", "budget_bytes": 10 * GB}, "none"),
        ("auto", 10 * GB, {"device": "cuda", "budget_bytes": 9 * GB}, "nf4"),
        ("auto", 15 * GB, {"device": "cuda"}, "nf4"),
        ("fp16", GB, {"device": "cuda"}, "none"),
        ("no", 50 * GB, {}, "none"),
    ],
)
def test_the_decision_at_its_bounds(quantize: Any, size: int, policy: dict[str, Any], expected: str) -> None:
    """Over the threshold, or over the budget, 4 bits; the sentence names which."""
    found = listing(size=size)
    choice = Choice(format=Format.SAFETENSORS, files=found.files, weight_bytes=size)
    quantization, convert, why = decide(quantize, choice, found, PullPolicy(**policy))
    assert quantization == expected
    assert convert is (policy.get("device") != "cuda" and expected != "none")
    assert why


def test_the_number_of_weights_counts_more_than_their_bytes() -> None:
    """Weights published at 32 bits are judged as the 16 bits that they would be."""
    found = listing(size=20 * GB, parameters=5 * GB)
    choice = Choice(format=Format.SAFETENSORS, files=found.files, weight_bytes=20 * GB)
    assert decide("auto", choice, found, PullPolicy())[0] == "int8"


def test_weights_that_cannot_be_converted_are_taken_as_they_are_or_refused() -> None:
    """IR and lone files need no converter; asking for a quantization of them is an error of that field."""
    broken = Willing(MissingExtra("no extra"))
    ir = listing(m__xml=10, m__bin=100)
    lone = listing(lora__safetensors=100)
    for found in (ir, lone):
        made = plan(EMPTY, request("acme/tiny"), wanted(EMPTY, request("acme/tiny")), found, PullPolicy(), broken)
        assert (made.convert, made.quantization, made.scratch_bytes) == (False, "none", 0)
        with pytest.raises(InvalidInput, match="quantize"):
            plan(EMPTY, asked := request("acme/tiny", quantize="q4"), wanted(EMPTY, asked), found, PullPolicy(), broken)
    with pytest.raises(UnsupportedWeights):
        wish = wanted(EMPTY, request("acme/tiny"))
        plan(EMPTY, request("acme/tiny"), wish, listing(m__gguf=100), PullPolicy(), Willing())
    with pytest.raises(MissingExtra, match="no extra") as refused:
        plan(EMPTY, request("acme/tiny"), wanted(EMPTY, request("acme/tiny")), listing(), PullPolicy(), broken)
    assert "pip install 'serai[torch]'" in (refused.value.hint or "")


def test_a_name_is_made_from_the_source_or_asked_for() -> None:
    """What belongs to something else is not taken."""
    assert slug(HubSource(repo="Qwen/Qwen3-0.6B")) == "qwen3-0.6b"
    assert slug(FileSource(url="https://x.org/My%20Model.safetensors", sha256=DIGEST)) == "my-20model"
    assert slug(FolderSource(root="r", path="a/auto")) == "pulled-auto"
    state = snapshot(a_version("tiny", "1.0.0", source=HubSource(repo="other/tiny", revision=B)))
    with pytest.raises(ModelNameTaken):
        plan(state, request("acme/tiny"), wanted(state, request("acme/tiny")), listing(), PullPolicy(), Willing())
    asked = request("acme/tiny", name="mine")
    assert plan(state, asked, wanted(state, asked), listing(), PullPolicy(), Willing()).model_id == "mine"


def test_a_model_that_takes_in_another_source_says_so() -> None:
    """Its bare name answers differently from then on; a new commit of the same repository is no surprise."""
    files = (File(path="x", size=1, sha256=DIGEST),)
    for repo, warned in (("other/tiny", True), ("ACME/tiny", False)):
        state = snapshot(a_version("tiny", "1.0.0", source=HubSource(repo=repo, revision=B), files=files))
        asked = request("acme/tiny", name="tiny")
        made = plan(state, asked, wanted(state, asked), listing(), PullPolicy(), Willing())
        assert any("another source" in warning for warning in made.warnings) is warned


def test_a_later_attempt_keeps_the_commit() -> None:
    """What the job's decision holds is believed where it is a commit of the same kind of source."""
    wish = wanted(EMPTY, request("acme/tiny"))
    decision = {"source": {"kind": "hub", "repo": "acme/tiny", "revision": B}}
    assert pinned_again(wish, decision).source == HubSource(repo="acme/tiny", revision=B)
    for nonsense in (None, {}, {"source": 5}, {"source": {"kind": "hub"}}, {"source": {"kind": "file"}}):
        assert pinned_again(wish, nonsense) == wish


ENCODER = HubSource(repo="acme/bert", revision=A)


@pytest.mark.parametrize(
    ("task", "architectures", "names", "decided"),
    [
        ("embedding", ("Qwen3ForCausalLM",), {}, "embedding"),
        ("", ("XLMRobertaModel",), {}, "embedding"),
        ("", (), {"modules__json": 9}, "embedding"),
        ("", ("BertForMaskedLM",), {}, ""),
        ("chat", ("LlamaForCausalLM",), {}, "chat"),
    ],
    ids=[
        "the hub says so",
        "an encoder without a head",
        "sentence-transformers' files",
        "a masked one",
        "a chat model",
    ],
)
def test_an_embedding_model_is_known_by_hub_class_or_files(
    task: str, architectures: tuple[str, ...], names: dict[str, int], decided: str
) -> None:
    """In that order; where nothing says so it is none."""
    found = replace(
        listing(ENCODER, **{"model__safetensors": GB, "config__json": 10, **names}),
        task=task,
        architectures=architectures,
    )
    asked = request("acme/bert")
    made = plan(EMPTY, asked, wanted(EMPTY, asked), found, PullPolicy(), Willing())
    assert made.listing.task == decided


def test_an_embedding_model_that_is_not_converted_is_taken_as_onnx() -> None:
    """A network that an engine reads goes before weights that would have to be converted."""
    found = replace(listing(ENCODER, model__safetensors=GB, onnx__model__onnx=GB, config__json=10), task="embedding")
    found = replace(
        found, files=tuple(replace(one, path=one.path.replace("onnx.model", "onnx/model")) for one in found.files)
    )
    asked = request("acme/bert")
    wish = wanted(EMPTY, asked)
    made = plan(EMPTY, asked, wish, found, PullPolicy(), Willing(MissingExtra("no torch")))
    assert (made.choice.format, made.convert) == (Format.ONNX, False)
    assert plan(EMPTY, asked, wish, found, PullPolicy(), Willing()).convert
    with pytest.raises(MissingExtra):
        plan(EMPTY, asked, wish, replace(found, task="chat"), PullPolicy(), Willing(MissingExtra("no torch")))


def test_a_model_of_the_registry_says_what_its_versions_do() -> None:
    """Whatever the hub tells of the repository that becomes one more of them."""
    here = snapshot(draft("bert", ENCODER))
    asked = request("acme/bert", name="bert")
    found = replace(listing(ENCODER), task="embedding")
    made = plan(here, asked, wanted(here, asked), found, PullPolicy(), Willing())
    assert made.listing.task == here.models["bert"].model.task == "chat"
