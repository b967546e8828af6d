"""Versions by Semantic Versioning 2.0.0 (semver.org), strictly, and a text that sorts as they do.

    1.0.0-alpha < 1.0.0-alpha.1 < 1.0.0-rc.1 < 1.0.0 < 1.9.0 < 1.10.0

Build metadata has no precedence. Two versions that differ only there are still two versions, so an
order that a page can rely on breaks the tie by the text of the build.
"""

import re
from dataclasses import dataclass
from functools import cached_property, total_ordering

from serai.registry.errors import InvalidVersionFormat

MAX_LENGTH = 100
"""Longest version, in characters. A bound of ours; the specification has none."""

SORT_KEY_MAX_LENGTH = 256
"""Longest text that `sort_key` returns, for the width of a column."""

_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_PATTERN = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)

# Characters of the key, lowest first. '!' is below '-', '0' and every letter, '~' above them all.
_END = "!"
_NUMERIC = "0"
_ALPHANUMERIC = "1"
_RELEASE = "~"


@total_ordering
@dataclass(frozen=True)
class SemVer:
    """One version. Equal means the same text; ordered by precedence, then by the build's text."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()
    build: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        if self.prerelease:
            text += "-" + ".".join(self.prerelease)
        if self.build:
            text += "+" + ".".join(self.build)
        return text

    @cached_property
    def precedence(self) -> tuple[object, ...]:
        """A value that compares as rule 11 of the specification says; builds do not show in it."""
        identifiers = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in self.prerelease)
        return (self.major, self.minor, self.patch, not self.prerelease, identifiers)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, SemVer):
            return NotImplemented
        return (self.precedence, ".".join(self.build)) < (other.precedence, ".".join(other.build))

    @property
    def is_prerelease(self) -> bool:
        return bool(self.prerelease)


def parse(text: str) -> SemVer:
    """Return the version that `text` is, whole and exactly. Raises InvalidVersionFormat."""
    match = _PATTERN.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        shown = text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"
        raise InvalidVersionFormat(
            f"{shown!r} is not a semantic version of at most {MAX_LENGTH} characters.",
            details=[{"field": "version", "problem": "is not a semantic version"}],
        )
    major, minor, patch, prerelease, build = match.groups()
    return SemVer(
        major=int(major),
        minor=int(minor),
        patch=int(patch),
        prerelease=tuple(prerelease.split(".")) if prerelease else (),
        build=tuple(build.split(".")) if build else (),
    )


def is_version(text: str) -> bool:
    """Say whether `text` is a strict semantic version."""
    return len(text) <= MAX_LENGTH and _PATTERN.fullmatch(text) is not None


def sort_key(text: str) -> str:
    """Return printable ASCII that sorts, byte by byte, as the version `text` does.

    For a column that SQL orders (SQLite's BINARY, PostgreSQL's "C" collation). A number is written
    as its count of digits in two places, then its digits; an identifier is marked numeric or not
    and ended below every character it may hold; a release is above every pre-release.
    Raises InvalidVersionFormat.
    """
    version = parse(text)
    parts = [_number_key(str(number)) for number in (version.major, version.minor, version.patch)]
    if version.prerelease:
        for identifier in version.prerelease:
            numeric = identifier.isdigit()
            parts.append(_NUMERIC + _number_key(identifier) if numeric else _ALPHANUMERIC + identifier + _END)
        parts.append(_END)
    else:
        parts.append(_RELEASE)
    return "".join(parts) + ".".join(version.build)


def next_minor(version: SemVer) -> SemVer:
    """Return the version of the next compatible release: 1.4.2 → 1.5.0. Raises InvalidVersionFormat."""
    return parse(f"{version.major}.{version.minor + 1}.0")


def next_patch(version: SemVer) -> SemVer:
    """Return the version of the next fix: 1.4.2 → 1.4.3; of a pre-release, its release."""
    step = 0 if version.is_prerelease else 1
    return parse(f"{version.major}.{version.minor}.{version.patch + step}")


def _number_key(digits: str) -> str:
    return f"{len(digits):02d}{digits}"
