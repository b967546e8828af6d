"""A client's `model` field is read in every form that the specification lists, and in no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry.errors import InvalidReference, InvalidVersionFormat
from serai.registry.reference import (
    Reference,
    check_alias,
    check_id,
    check_lookup_name,
    looks_like_version,
    parse_reference,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chat", Reference(name="chat")),
        ("qwen3@1.2.0", Reference(name="qwen3", version="1.2.0")),
        ("qwen3@1.2.0-rc.1+b", Reference(name="qwen3", version="1.2.0-rc.1+b")),
        ("qwen3@production", Reference(name="qwen3", alias="production")),
        ("qwen3:latest", Reference(name="qwen3")),
        ("qwen3@latest", Reference(name="qwen3")),
        ("qwen3:0.6b", Reference(name="qwen3", alias="0.6b")),
        ("qwen3:1.0.0", Reference(name="qwen3", version="1.0.0")),
        ("llama3:8b-instruct-q4_K_M", Reference(name="llama3", alias="8b-instruct-q4_K_M")),
        ("Qwen/Qwen3-0.6B", Reference(name="Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B@1.0.0", Reference(name="Qwen/Qwen3-0.6B", version="1.0.0")),
        ("GPT2", Reference(name="GPT2")),
    ],
)
def test_every_form_is_read(text: str, expected: Reference) -> None:
    """Service ids, models, versions, aliases, Ollama's tags and hub names are told apart."""
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "../etc/passwd",
        "a/b/c",
        "/a",
        "a/",
        "a@",
        "a:",
        "@1.0.0",
        "a@b@c",
        "a:b:c",
        "a@1.0.0\n",
        "a\n",
        "-a",
        ".a",
        "a\0",
        "ä",
        "a" * 129,
        "a@" + "b" * 200,
        "a" * 400,
    ],
)
def test_what_could_never_exist_is_refused(text: str) -> None:
    """A text of another form is refused before any look-up, with the forms there are as a hint."""
    with pytest.raises(InvalidReference) as caught:
        parse_reference(text)
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["m@1.0", "m@v1.0.0", "m@01.0.0", "m@1.0.0junk", "m@1", "m:1.0", "m@1.0+b"])
def test_a_selector_that_looks_like_a_version_must_be_one(text: str) -> None:
    """`model@1.0` is a mistyped version and is told so, not searched among the aliases."""
    with pytest.raises(InvalidVersionFormat):
        parse_reference(text)


@pytest.mark.parametrize("text", ["1.0", "1.0.0", "v1", "v1.2", "1", "1.x", "1.0-rc", "1.0.0junk", "01.0.0", "1_0"])
def test_an_alias_may_not_look_like_a_version(text: str) -> None:
    """Whatever a person could take for a version cannot be the name of an alias."""
    assert looks_like_version(text)
    with pytest.raises(InvalidInput, match=r"version|must be"):
        check_alias(text)


def test_latest_is_no_alias() -> None:
    """`latest` stands for the default and cannot be made."""
    with pytest.raises(InvalidInput, match="latest"):
        check_alias("latest")


@pytest.mark.parametrize("text", ["production", "0.6b", "8b", "q4_0", "a", "blue"])
def test_other_slugs_are_aliases(text: str) -> None:
    """A slug that is no version is a fine alias, a size such as 0.6b too."""
    assert check_alias(text) == text


@pytest.mark.parametrize(
    "text", ["", "A", "ä", "-a", ".a", "a b", "a/b", "a@b", "a:b", "a\n", "a" * 129, "latest", "auto"]
)
def test_an_id_is_a_slug(text: str) -> None:
    """Ids follow the slug rule exactly, and the two words with a meaning are taken."""
    with pytest.raises(InvalidInput):
        check_id(text)


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B", "openai-community/gpt2", "gpt2"])
def test_hub_names_are_lookup_names(text: str) -> None:
    """A hub's owner/name, in any case, may be a further name of a model."""
    assert check_lookup_name(text) == text


@pytest.mark.parametrize("text", ["a/b/c", "../x", "a/..", "Gpt2", "a/ b"])
def test_other_lookup_names_are_refused(text: str) -> None:
    """A lookup name is an id or a hub name and nothing else."""
    with pytest.raises(InvalidInput):
        check_lookup_name(text)


@given(st.text(max_size=60))
def test_reading_never_crashes(text: str) -> None:
    """Any text is either read, and then written back to what reads the same, or refused as bad input."""
    try:
        reference = parse_reference(text)
    except InvalidInput:
        return
    assert parse_reference(str(reference)) == reference


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True))
def test_every_alias_that_can_be_made_can_be_named(text: str) -> None:
    """What `check_alias` lets in, `model@alias` reads as that alias."""
    try:
        check_alias(text)
    except InvalidInput:
        return
    assert parse_reference(f"m@{text}") == Reference(name="m", alias=text)
