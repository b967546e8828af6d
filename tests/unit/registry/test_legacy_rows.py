"""Columns of the service that this one replaces, one by one."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry import legacy_rows as read
from serai.registry.reference import check_id, parse_reference
from serai.registry.semver import is_version, parse


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.2.3", "1.2.3"),
        ("1.0.0-rc.1+b5", "1.0.0-rc.1+b5"),
        ("1.0", "1.0.0"),
        ("v2", "2.0.0"),
        ("V.3.1", "3.1.0"),
        ("01.02.03", "1.2.3"),
        ("1.0.0junk", "1.0.0-junk"),
        ("1.0.0\n", "1.0.0"),
        ("1.0 beta_02", "1.0.0-beta.2"),
        ("1.2.3.4", "1.2.3+4"),
        ("1.2.3.4.5", "1.2.3+4.5"),
        ("2024-05-01", "2024.0.0+5.1"),
        ("base", "0.0.0-base"),
        ("نسخه", "1.0.0"),
        ("", "1.0.0"),
    ],
)
def test_a_loose_version_becomes_a_strict_one(old: str, new: str) -> None:
    """What is strict stays; numbers are kept, what follows them too, as far as a version can hold it."""
    assert read.semver(old) == new


@given(st.one_of(st.text(max_size=300), st.from_regex(r"v?[0-9.]{0,120}[-+a-z0-9.]{0,120}")))
def test_every_text_becomes_a_version(old: str) -> None:
    """Whatever stood in the column, the result is strict, and a strict one is left alone."""
    made = read.semver(old)
    assert is_version(made)
    assert read.semver(made) == made


def test_loose_versions_keep_their_order() -> None:
    """1.10 is newer than 1.9 here as it was meant there."""
    assert parse(read.semver("1.9")) < parse(read.semver("1.10")) < parse(read.semver("v2"))
    assert parse(read.semver("2.0-beta")) < parse(read.semver("2.0"))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("qwen3", "qwen3", "qwen3"),
        ("IndicTrans", "indictrans", "indictrans"),
        ("ai4bharat/IndicTrans--V2", "ai4bharat-indictrans--v2", "ai4bharat/IndicTrans--V2"),
        ("my model (old)", "my-model-old", None),
        ("-_x", "x", None),
        ("مدل", "", None),
    ],
)
def test_an_id_becomes_a_slug_and_stays_a_name_where_it_can(old: str, new: str, name: str | None) -> None:
    """A hub's name is kept as it is; names know no case; what no client could write is given up."""
    assert (read.slug(old), read.lookup_name(old)) == (new, name)


@given(st.text(max_size=300))
def test_a_slug_is_an_id_or_nothing(old: str) -> None:
    """And a name that is kept can be parsed where a client writes it."""
    made = read.slug(old)
    if made not in ("", "latest", "auto"):
        assert check_id(made) == made
    else:
        with pytest.raises(InvalidInput):
            check_id(made)
    name = read.lookup_name(old)
    if name is not None:
        assert parse_reference(name).name == name


NOON = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        1_700_000_000,
        1_700_000_000_000,
        "1700000000",
        " 1700000000000 ",
        1_700_000_000.0,
        Decimal(1_700_000_000),
        "2023-11-14 22:13:20",
        "2023-11-14T22:13:20Z",
        "2023-11-15T01:43:20+03:30",
        datetime(2023, 11, 14, 22, 13, 20),  # noqa: DTZ001 - naive is the subject
        datetime(2023, 11, 15, 1, 43, 20, tzinfo=timezone(timedelta(hours=3, minutes=30))),
    ],
)
def test_every_way_to_write_a_time_is_one_time_in_utc(value: Any) -> None:
    """Seconds, milliseconds, texts and datetimes, with a zone or (as UTC) without."""
    found = read.moment(value)
    assert found == NOON
    assert found is not None
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("value", [None, 0, ""])
def test_no_time_is_no_time(value: Any) -> None:
    """NULL, 0 and the empty text stand for 'never'."""
    assert read.moment(value) is None


@pytest.mark.parametrize("value", ["yesterday", -5, 10**30, float("nan"), float("inf"), True, b"x", [1], "9" * 40])
def test_what_is_no_time_is_refused(value: Any) -> None:
    """Rather than taken for some other time."""
    with pytest.raises((ValueError, TypeError)):
        read.moment(value)


@pytest.mark.parametrize(
    ("value", "found"), [(True, True), (1, True), ("t", True), ("true", True), (0, False), (None, False), ("no", False)]
)
def test_a_flag_is_read_as_each_database_writes_it(value: Any, found: bool) -> None:
    """SQLite has numbers, PostgreSQL has booleans, dumps have letters."""
    assert read.flag(value) is found


@pytest.mark.parametrize(
    ("value", "found"),
    [({"type": "ASR"}, "asr"), ('{"type": "tts"}', "tts"), ("llm", "llm"), (None, ""), ({}, ""), ([1], "[1]")],
)
def test_a_task_is_an_object_or_a_word(value: Any, found: str) -> None:
    """Parsed by the driver or not."""
    assert read.task(value) == found


def test_languages_and_words_come_once_each() -> None:
    """From lists, objects, JSON texts and texts with commas."""
    pairs = [{"sourceLanguage": "hi", "sourceScriptCode": "Deva", "targetLanguage": "en"}, {"sourceLanguage": "en"}]
    assert read.languages(pairs) == ("hi", "en")
    assert read.languages('["fa", "en", "fa"]') == ("fa", "en")
    assert read.languages(None) == ()
    assert read.words("general, law,") == ("general", "law")
    assert read.words(["general", None, 3]) == ("general",)


def test_benchmarks_are_taken_as_far_as_they_are_results() -> None:
    """What has no name, metric or finite number is left out, and that is told."""
    row = {"name": "FLEURS", "domain": ["news"], "score": [{"metricName": "WER", "score": "12.5"}]}
    found, whole = read.benchmarks([row])
    assert [(one.name, one.dataset, one.metric, one.value) for one in found] == [("FLEURS", "news", "WER", 12.5)]
    assert whole
    for broken in ({"name": "x"}, {"name": "x", "score": [{"metricName": "m", "score": "good"}]}, {"score": [1]}, 7):
        found, whole = read.benchmarks([row, broken])
        assert (len(found), whole) == (1, False), broken
    assert read.benchmarks(None) == ((), True)
    assert read.benchmarks({"a": 1}) == ((), False)
