"""Versions are strict SemVer 2.0.0, ordered by precedence, also as texts in a database."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry.errors import InvalidVersionFormat
from serai.registry.semver import (
    MAX_LENGTH,
    SORT_KEY_MAX_LENGTH,
    SemVer,
    is_version,
    next_minor,
    next_patch,
    parse,
    sort_key,
)

NUMBERS = st.one_of(st.integers(0, 30), st.integers(0, 10**25))
NUMERIC = NUMBERS.map(str)
ALPHANUMERIC = st.from_regex(r"[0-9]{0,2}[A-Za-z-][0-9A-Za-z-]{0,5}", fullmatch=True)
IDENTIFIERS = st.lists(st.one_of(NUMERIC, ALPHANUMERIC), max_size=4).map(tuple)
BUILDS = st.lists(st.from_regex(r"[0-9A-Za-z-]{1,5}", fullmatch=True), max_size=3).map(tuple)
VERSIONS = st.builds(SemVer, NUMBERS, NUMBERS, NUMBERS, IDENTIFIERS, BUILDS).filter(
    lambda version: len(str(version)) <= MAX_LENGTH
)


@pytest.mark.parametrize(
    "text",
    [
        "1.0.0junk",
        "01.0.0",
        "1.01.0",
        "1.0.00",
        "1.0.0\n",
        "\n1.0.0",
        " 1.0.0",
        "1.0.0 ",
        "v1.0.0",
        "V1.0.0",
        "=1.0.0",
        "1.0",
        "1",
        "1.0.0.0",
        "",
        ".",
        "1..0",
        "-1.0.0",
        "+1.0.0",
        "1.0.0-",
        "1.0.0+",
        "1.0.0-01",
        "1.0.0-a..b",
        "1.0.0-a.",
        "1.0.0+a+b",
        "1.0.0+a..b",
        "1.0.0-ä",
        "1.0.0_1",
        "1_0.0.0",
        "1.0.0\0",
        "1.0.0\r\n",
        "latest",
        "1.x.0",
        "1e3.0.0",
        "1.0.0-" + "a" * MAX_LENGTH,
    ],
)
def test_what_is_not_strictly_a_version_is_refused(text: str) -> None:
    """A text that is not a semantic version from its first to its last character is refused by its code."""
    assert not is_version(text)
    with pytest.raises(InvalidVersionFormat) as caught:
        parse(text)
    assert caught.value.code == "INVALID_VERSION_FORMAT"
    assert isinstance(caught.value, InvalidInput)
    assert caught.value.hint is not None


@pytest.mark.parametrize("text", ["۱.۰.۰", "1.0.٠", "１.0.0", "1.0.0-²", "𝟏.0.0"])
def test_digits_of_other_scripts_are_refused(text: str) -> None:
    """Only the digits 0 to 9 make a version, although Python calls others digits too."""
    with pytest.raises(InvalidVersionFormat):
        parse(text)


@pytest.mark.parametrize(
    "text", ["0.0.0", "1.2.3", "1.0.0-alpha", "1.0.0-0", "1.0.0--", "1.0.0-x-y.7.z", "1.0.0+001", "1.0.0-rc.1+b.5"]
)
def test_the_forms_of_the_specification_are_accepted(text: str) -> None:
    """Each form that semver.org allows is read and written back as it was."""
    assert str(parse(text)) == text


def test_the_example_of_the_specification_is_in_order() -> None:
    """The chain of rule 11 ascends, and 1.10.0 is above 1.9.0 (it once sorted as text)."""
    chain = [
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.9.0",
        "1.10.0",
        "2.0.0",
        "2.1.0",
        "2.1.1",
        "10.0.0",
    ]
    assert sorted(chain, key=parse) == chain
    assert sorted(chain, key=sort_key) == chain


def test_a_build_has_no_precedence_but_breaks_ties() -> None:
    """Two builds of one version have equal precedence, are not equal, and have a fixed order."""
    first, second = parse("1.0.0+a"), parse("1.0.0+b")
    assert first.precedence == second.precedence
    assert first != second
    assert first < second
    assert parse("1.0.0") < first < parse("1.0.1-0")


@given(VERSIONS)
def test_reading_what_was_written_gives_the_same(version: SemVer) -> None:
    """Every version survives being written and read."""
    assert parse(str(version)) == version


@given(VERSIONS, VERSIONS)
def test_keys_sort_as_versions_do(one: SemVer, two: SemVer) -> None:
    """Byte order of the keys is the order of the versions, with the same ties and none besides."""
    left, right = sort_key(str(one)), sort_key(str(two))
    assert (left < right) == (one < two)
    assert (left == right) == (one == two)
    assert left.isascii()
    assert left.isprintable()
    assert len(left) <= SORT_KEY_MAX_LENGTH


@given(st.lists(VERSIONS, max_size=6))
def test_the_order_is_total(versions: list[SemVer]) -> None:
    """Sorting twice, from any start, gives one result, in which neighbours agree with `precedence`."""
    ordered = sorted(versions)
    turned = list(reversed(versions))
    assert sorted(turned) == ordered
    assert all(low.precedence <= high.precedence for low, high in pairwise(ordered))


def _precedes(one: SemVer, two: SemVer) -> bool:
    """Rule 11, word for word, as an independent reading."""
    numbers_one, numbers_two = (one.major, one.minor, one.patch), (two.major, two.minor, two.patch)
    if numbers_one != numbers_two:
        return numbers_one < numbers_two
    if not one.prerelease or not two.prerelease:
        return bool(one.prerelease) and not two.prerelease
    for left, right in zip(one.prerelease, two.prerelease, strict=False):
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            return int(left) < int(right)
        if left.isdigit() != right.isdigit():
            return left.isdigit()
        return left < right
    return len(one.prerelease) < len(two.prerelease)


@given(VERSIONS, VERSIONS)
def test_precedence_is_rule_11(one: SemVer, two: SemVer) -> None:
    """Precedence agrees with a second, literal reading of the specification."""
    assert (one.precedence < two.precedence) == _precedes(one, two)


def test_the_longest_key_fits_its_column() -> None:
    """The version whose key grows most is within the width that is promised."""
    text = "1.0.0-" + ".".join(["1"] * 47)
    assert len(text) <= MAX_LENGTH
    assert len(sort_key(text)) <= SORT_KEY_MAX_LENGTH


@given(VERSIONS)
def test_the_next_version_is_above(version: SemVer) -> None:
    """The next minor is above the version, and so is the next patch; both are releases."""
    try:
        minor, patch = next_minor(version), next_patch(version)
    except InvalidVersionFormat:
        assert len(str(version)) >= 75
        return
    assert version < patch or version.precedence == patch.precedence
    assert version < minor
    assert not minor.is_prerelease
    assert not patch.is_prerelease


@pytest.mark.parametrize(
    ("version", "minor", "patch"),
    [("1.4.2", "1.5.0", "1.4.3"), ("1.0.0-rc.1", "1.1.0", "1.0.0"), ("1.9.0+b", "1.10.0", "1.9.1")],
)
def test_next_versions(version: str, minor: str, patch: str) -> None:
    """The next minor resets the patch; the next patch of a pre-release is its release."""
    assert str(next_minor(parse(version))) == minor
    assert str(next_patch(parse(version))) == patch
