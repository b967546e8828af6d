"""The semantic diff of two versions, and what of it breaks callers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.registry.diff import FieldChange, diff_cards, diff_fields, diff_mappings, diff_versions
from serai.registry.parameters import Parameter
from serai.registry.schema_diff import compare_schemas
from serai.registry.source import Benchmark, File, Footprint
from unit.registry.build import a_model, a_version

A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_a_version_does_not_differ_from_itself() -> None:
    """Nothing changed means an empty diff, whatever number and times it has."""
    diff = diff_versions(a_version(engine="x"), a_version(version="1.0.0", seq=7, engine="x"))
    assert diff.identical
    assert (diff.fields, diff.engine_options, diff.parameters, diff.breaking) == ((), (), (), ())
    assert not diff.files.any


def test_files_are_compared_by_digest() -> None:
    """Files are added, removed, changed, moved or the same, by content and not by time."""
    before = a_version(
        files=(File(path="a", size=1, sha256=A), File(path="b", size=1, sha256=B), File(path="old", size=1, sha256=C))
    )
    after = a_version(
        files=(
            File(path="a", size=1, sha256=A),
            File(path="b", size=2, sha256="d" * 64),
            File(path="new", size=1, sha256=C),
            File(path="more", size=1, sha256="e" * 64),
        )
    )
    files = diff_versions(before, after).files
    assert (files.same, files.changed, files.moved) == (("a",), ("b",), (("old", "new"),))
    assert (files.added, files.removed) == (("more",), ())
    assert (files.bytes_before, files.bytes_after) == (3, 5)


def test_another_tokenizer_is_pointed_out() -> None:
    """A changed chat template means other prompts, so it is named and counts as breaking."""
    before = a_version(
        files=(File(path="chat_template.jinja", size=1, sha256=A), File(path="w.safetensors", size=1, sha256=A))
    )
    after = a_version(
        files=(File(path="chat_template.jinja", size=1, sha256=B), File(path="w.safetensors", size=1, sha256=B))
    )
    diff = diff_versions(before, after)
    assert diff.tokenizer == ("chat_template.jinja",)
    assert any("other tokens" in sentence for sentence in diff.breaking)


def test_fields_options_memory_and_benchmarks_stand_side_by_side() -> None:
    """Each part of a version has its own place in the diff, with both values."""
    before = a_version(
        engine="a",
        engine_options={"threads": 2, "kv": "f16"},
        footprint=(Footprint(device="cpu", bytes=9), Footprint(device="cpu", bytes=5, measured=True)),
        benchmarks=(Benchmark(name="x", metric="acc", value=0.5), Benchmark(name="old", metric="acc", value=1)),
    )
    after = a_version(
        engine="b",
        engine_options={"threads": 4, "new": True},
        footprint=(Footprint(device="cpu", bytes=7, measured=True), Footprint(device="cuda", bytes=3)),
        benchmarks=(Benchmark(name="x", metric="acc", value=0.75), Benchmark(name="new", metric="ms", value=9)),
    )
    diff = diff_versions(before, after)
    assert diff.fields == (FieldChange(name="engine", change="changed", before="a", after="b"),)
    assert [(entry.name, entry.change) for entry in diff.engine_options] == [
        ("kv", "removed"),
        ("new", "added"),
        ("threads", "changed"),
    ]
    assert [(pair.device, pair.before, pair.after, pair.measured) for pair in diff.memory] == [
        ("cpu", 5, 7, True),
        ("cuda", None, 3, False),
    ]
    assert [(pair.name, pair.before, pair.after, pair.change) for pair in diff.benchmarks] == [
        ("new", None, 9, None),
        ("old", 1, None, None),
        ("x", 0.5, 0.75, 0.25),
    ]
    assert not diff.identical
    assert diff.document()["fields"][0]["name"] == "engine"


@pytest.mark.parametrize(
    ("before", "after", "breaking"),
    [
        ({"p": Parameter(max=50)}, {"p": Parameter(max=40)}, True),
        ({"p": Parameter(max=50)}, {"p": Parameter(max=60)}, False),
        ({"p": Parameter(min=1)}, {"p": Parameter(min=2)}, True),
        ({"p": Parameter()}, {"p": Parameter(min=2)}, True),
        ({"p": Parameter(default=1)}, {"p": Parameter(default=1, fixed=True)}, True),
        ({"p": Parameter(default=1)}, {"p": Parameter(default=2)}, False),
        ({"p": Parameter()}, {"p": Parameter(multiple_of=8)}, True),
        ({"p": Parameter(multiple_of=16)}, {"p": Parameter(multiple_of=8)}, False),
        ({"p": Parameter(default=1)}, {}, True),
        ({}, {"p": Parameter(default=1)}, False),
    ],
)
def test_a_narrower_parameter_breaks(before: dict[str, Parameter], after: dict[str, Parameter], breaking: bool) -> None:
    """A parameter that accepts less than before is named among what breaks."""
    diff = diff_versions(a_version(parameters=before), a_version(parameters=after))
    assert bool(diff.breaking) is breaking


def test_lost_capabilities_and_other_licences_break() -> None:
    """What a version can no longer do, and a change of its licence, are told."""
    diff = diff_versions(
        a_version(capabilities=("text", "vision"), licence="MIT"), a_version(capabilities=("text",), licence="OPT-175B")
    )
    assert "It can no longer do vision." in diff.breaking
    assert "licence was 'MIT' and is 'OPT-175B'." in diff.breaking


OBJECT = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}


@pytest.mark.parametrize(
    ("before", "after", "as_input", "as_output"),
    [
        (OBJECT, OBJECT, "same", "same"),
        (None, None, "same", "same"),
        (None, OBJECT, "breaking", "compatible"),
        (OBJECT, OBJECT | {"required": []}, "compatible", "breaking"),
        (OBJECT | {"required": []}, OBJECT, "breaking", "compatible"),
        (
            OBJECT,
            OBJECT | {"properties": OBJECT["properties"] | {"seed": {"type": "integer"}}},
            "compatible",
            "compatible",
        ),
        (OBJECT, OBJECT | {"properties": {}}, "breaking", "breaking"),
        (OBJECT, OBJECT | {"description": "words"}, "same", "same"),
        ({"type": "integer"}, {"type": "number"}, "compatible", "breaking"),
        ({"type": "number"}, {"type": "integer"}, "breaking", "compatible"),
        ({"type": "string"}, {"type": "integer"}, "breaking", "breaking"),
        ({"type": "string"}, {"type": ["string", "null"]}, "compatible", "breaking"),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "breaking", "compatible"),
        ({"maximum": 50}, {"maximum": 40}, "breaking", "compatible"),
        ({"maximum": 50}, {}, "compatible", "breaking"),
        ({"minimum": 1}, {"minimum": 0}, "compatible", "breaking"),
        ({"maxLength": 10}, {"maxLength": "long"}, "breaking", "compatible"),
        ({"additionalProperties": True}, {"additionalProperties": False}, "breaking", "compatible"),
        ({"items": {"type": "string"}}, {"items": {"type": "integer"}}, "breaking", "breaking"),
        ({"oneOf": [{"type": "string"}]}, {"oneOf": []}, "breaking", "breaking"),
    ],
)
def test_schemas(before: dict[str, object], after: dict[str, object], as_input: str, as_output: str) -> None:
    """What refuses more breaks callers, what promises less breaks readers."""
    assert compare_schemas(before, after, "input").verdict == as_input
    assert compare_schemas(before, after, "output").verdict == as_output


def test_a_difference_deep_inside_is_found_and_named() -> None:
    """The sentence of a nested difference has the path to it."""
    before = {"properties": {"a": {"items": {"properties": {"b": {"maximum": 5}}}}}}
    after = {"properties": {"a": {"items": {"properties": {"b": {"maximum": 4}}}}}}
    assert compare_schemas(before, after, "input").breaking == ("a[].b: maximum was 5 and is 4",)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "required", "enum", "items", "minimum", "maxItems", "oneOf"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)
SCHEMAS = st.dictionaries(
    st.sampled_from(["type", "properties", "required", "enum", "items", "minimum", "x"]), ANYTHING, max_size=5
)


@given(SCHEMAS, SCHEMAS)
def test_any_two_schemas_can_be_compared(before: dict[str, object], after: dict[str, object]) -> None:
    """A schema is whatever somebody sent: comparing never crashes, and equal ones are the same."""
    for direction in ("input", "output"):
        change = compare_schemas(before, after, direction)  # type: ignore[arg-type]
        assert (change.verdict == "breaking") == bool(change.breaking)
        if before == after:
            assert change.verdict == "same"


def test_cards_are_compared_without_their_times() -> None:
    """The diff of two cards names what somebody changed."""
    before = a_model("m", tags=("a",))
    after = a_model("m", tags=("a", "b"), description="new")
    assert [(entry.name, entry.change) for entry in diff_cards(before, after)] == [
        ("description", "added"),
        ("tags", "changed"),
    ]


def test_only_equal_kinds_are_compared() -> None:
    """A card and a version have no diff."""
    with pytest.raises(TypeError):
        diff_fields(a_model(), a_version())


def test_true_is_not_one() -> None:
    """A switch that became a number has changed, although Python calls them equal."""
    assert diff_mappings({"x": True}, {"x": 1}) == (FieldChange(name="x", change="changed", before=True, after=1),)
