"""What a version is, its digest, and what a new one takes over."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry.canonical import canonical_json, digest_of
from serai.registry.errors import InvalidVersionFormat
from serai.registry.parameters import Parameter
from serai.registry.source import (
    Adapter,
    Availability,
    File,
    FileSource,
    FolderSource,
    Footprint,
    HubSource,
    PackageSource,
    RemoteSource,
)
from serai.registry.version import (
    IDENTITY,
    Status,
    Version,
    check_version,
    derive,
    digest,
    manifest,
    seal,
)
from unit.registry.build import AT, a_version

A, B = "a" * 64, "b" * 64
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def lora(scale: float = 1.0) -> Adapter:
    return Adapter(id="v1", source=FolderSource(root="adapters", path="v1"), scale=scale)


def full(**values: object) -> Version:
    """A version with something in every technical field."""
    base = {
        "source": HubSource(repo="o/n", revision="c" * 40),
        "engine": "diffusers",
        "engine_options": {"threads": 2},
        "quantization": "nf4",
        "adapters": (lora(),),
        "parameters": {"steps": Parameter(default=30, min=1, max=50)},
        "files": (File(path="a.safetensors", size=3, sha256=A), File(path="b.json", size=1, sha256=B)),
        "footprint": (Footprint(device="cuda", bytes=5),),
        "memory_class": "medium",
        "capabilities": ("edit",),
        "licence": "MIT",
        "tags": ("enhanced",),
    }
    return a_version(**(base | values))


def test_a_digest_depends_on_what_a_version_is_and_on_nothing_else() -> None:
    """Notes, tags, status, times and measured memory leave the digest; each field of identity changes it."""
    version = full()
    said = replace(
        version, release_notes="new", tags=("x",), status=Status.DEPRECATED, footprint=(), licence="X", seq=9
    )
    assert digest(said) == digest(version)
    others = {
        "source": HubSource(repo="o/n", revision="d" * 40),
        "engine": "vllm",
        "engine_options": {"threads": 3},
        "quantization": "int8",
        "adapters": (lora(0.5),),
        "parameters": {},
        "files": version.files[:1],
        "allow_remote_code": True,
        "allow_pickle": True,
    }
    assert set(others) == set(IDENTITY)
    digests = {digest(replace(version, **{name: value})) for name, value in others.items()}
    assert len(digests | {digest(version)}) == len(IDENTITY) + 1


def test_the_order_of_files_and_options_does_not_matter() -> None:
    """The same files and options in another order are the same version."""
    version = full(engine_options={"a": 1, "b": {"c": 2, "d": 3}})
    turned = replace(version, files=version.files[::-1], engine_options={"b": {"d": 3, "c": 2}, "a": 1.0})
    assert digest(turned) == digest(version)


def test_a_digest_is_written_down_here_so_that_it_never_changes_unnoticed() -> None:
    """The manifest of a known version has the digest that it had when this was written."""
    version = a_version(source=PackageSource(name="x"), engine="fake", engine_options={"n": 1.0})
    assert manifest(version) == {
        "source": {"kind": "package", "name": "x"},
        "engine": "fake",
        "engine_options": {"n": 1.0},
        "quantization": "none",
    }
    text = b'{"engine":"fake","engine_options":{"n":1},"quantization":"none","source":{"kind":"package","name":"x"}}'
    assert canonical_json(manifest(version)) == text
    assert digest(version) == "sha256:acdd57ead4a3556c1084ae4427216888283c02dd45de5af06c36299d9b12ff3d"


@given(JSON)
def test_canonical_json_is_one_text_for_one_value(value: object) -> None:
    """Encoding what was decoded gives the same bytes, so a value that a database kept has its digest."""
    import json

    try:
        text = canonical_json(value)
    except InvalidInput:
        assert "\\ud" in json.dumps(value)  # lone surrogates cannot be written as UTF-8
        return
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: 2}, object(), b"x", {"a": {1, 2}}, "\ud800", 2**63, -(2**63) - 1]
)
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    """A value without a JSON text is bad input, not a crash."""
    with pytest.raises(InvalidInput):
        digest_of({"value": value})


def test_deep_nesting_is_refused() -> None:
    """A value nested a thousand deep is bad input, not a recursion error."""
    value: object = 1
    for _ in range(1000):
        value = [value]
    with pytest.raises(InvalidInput):
        digest_of(value)


def test_a_draft_has_no_digest_and_an_active_version_has_one() -> None:
    """The digest is fixed when a version leaves the draft."""
    assert seal(a_version(status=Status.DRAFT)).digest is None
    assert seal(a_version()).digest == digest(a_version())


def test_a_new_version_takes_over_the_technical_fields() -> None:
    """Rule 1: without overrides everything technical is as in the base, and nothing of its life is."""
    base = full(immutable=True, published_at=AT, digest="sha256:x", release_notes="old", benchmarks=())
    made = derive(base, {}, version="1.1.0", seq=2, status=Status.DRAFT, at=AT, by="bob")
    for name in (*IDENTITY, "footprint", "memory_class", "capabilities", "licence", "tags"):
        assert getattr(made, name) == getattr(base, name), name
    assert (made.version, made.seq, made.based_on, made.created_by) == ("1.1.0", 2, "1.0.0", "bob")
    assert (made.immutable, made.published_at, made.digest, made.release_notes) == (False, None, None, "")


def test_overrides_win_in_the_same_call() -> None:
    """Rule 1: any technical field may be overridden while it is taken over."""
    made = derive(
        full(),
        {"quantization": "int8", "release_notes": "n"},
        version="2.0.0",
        seq=2,
        status=Status.ACTIVE,
        at=AT,
        by="b",
    )
    assert (made.quantization, made.release_notes, made.engine) == ("int8", "n", "diffusers")
    assert made.digest == digest(made)


def test_other_weights_do_not_take_over_files() -> None:
    """A new source or adapter has other files, so files and footprint start empty unless given."""
    for overrides in ({"source": HubSource(repo="o/n", revision="d" * 40)}, {"adapters": ()}):
        made = derive(full(), overrides, version="2.0.0", seq=2, status=Status.DRAFT, at=AT, by="b")
        assert (made.files, made.footprint) == ((), ())
    same = derive(full(), {"source": full().source}, version="2.0.0", seq=2, status=Status.DRAFT, at=AT, by="b")
    assert same.files == full().files


@pytest.mark.parametrize("name", ["status", "seq", "digest", "immutable", "model_id", "created_at", "nonsense"])
def test_unknown_and_own_fields_are_refused(name: str) -> None:
    """A field that no caller may set is refused and named, never dropped."""
    with pytest.raises(InvalidInput, match=name):
        derive(full(), {name: 1}, version="2.0.0", seq=2, status=Status.DRAFT, at=AT, by="b")


def test_a_new_version_needs_a_version() -> None:
    """The number of a new version is checked."""
    with pytest.raises(InvalidVersionFormat):
        derive(full(), {}, version="2.0", seq=2, status=Status.DRAFT, at=AT, by="b")


@pytest.mark.parametrize("path", ["/a", "../a", "a/../b", "a//b", "./a", "a\\b", "a\0", "a/"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    """A file of a version cannot name anything outside its folder."""
    with pytest.raises(InvalidInput, match="files"):
        check_version(full(files=(File(path=path, size=1, sha256=A),)))


def test_the_same_file_twice_is_refused() -> None:
    """A manifest names each path once."""
    with pytest.raises(InvalidInput, match="files"):
        check_version(full(files=(File(path="a", size=1, sha256=A), File(path="a", size=1, sha256=B))))


@pytest.mark.parametrize(
    ("source", "adapters", "files", "expected"),
    [
        (None, (), (), Availability.NO_SOURCE),
        (HubSource(repo="o/n"), (), (), Availability.NEEDS_PULL),
        (HubSource(repo="o/n"), (lora(),), (), Availability.NEEDS_FILES),
        (FileSource(url="https://x/y", sha256=A), (), (), Availability.NEEDS_PULL),
        (FolderSource(root="r", path="p"), (), (), Availability.NEEDS_FILES),
        (PackageSource(name="x"), (), (), Availability.READY),
        (RemoteSource(endpoint="https://x", model="y"), (), (), Availability.READY),
        (HubSource(repo="o/n"), (), (File(path="a", size=1, sha256=A),), Availability.READY),
    ],
)
def test_availability(
    source: object, adapters: tuple[Adapter, ...], files: tuple[File, ...], expected: Availability
) -> None:
    """What is missing before a version can be loaded is told from its source and files."""
    assert a_version(source=source, adapters=adapters, files=files).availability is expected


def test_versions_that_differ_in_adapters_share_their_base() -> None:
    """LoRA V1 and V2 on one base have one base digest; another base has another."""
    one = full(files=(File(path="base", size=1, sha256=A), File(path="adapters/v1", size=1, sha256=A)))
    two = full(adapters=(), files=(File(path="base", size=1, sha256=A), File(path="adapters/v2", size=1, sha256=B)))
    other = full(files=(File(path="base", size=1, sha256=B),))
    assert one.base_digest == two.base_digest != other.base_digest
    assert digest(one) != digest(two)


def test_a_measured_footprint_goes_before_an_estimate() -> None:
    """Once memory was measured, the estimate is not used any more."""
    version = full(
        footprint=(
            Footprint(device="cpu", bytes=9, measured=True),
            Footprint(device="cpu", bytes=5),
            Footprint(device="cuda", bytes=7),
        )
    )
    assert (version.bytes_on("cpu"), version.bytes_on("cuda"), version.bytes_on("xpu")) == (9, 7, None)


def test_a_branch_is_no_pin() -> None:
    """Only a commit hash pins a hub source."""
    assert HubSource(repo="o/n", revision="c" * 40).is_pinned
    assert not HubSource(repo="o/n").is_pinned
    assert not HubSource(repo="o/n", revision="c" * 39).is_pinned
