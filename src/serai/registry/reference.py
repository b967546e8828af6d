"""What a client writes in the field `model`: a service, a model, a version of it, a hub name.

    chat                     a service, or the newest active version of the model `chat`
    qwen3@1.2.0              one version
    qwen3@production         the version that an alias points to
    qwen3:latest             Ollama's form; `latest` is the default
    Qwen/Qwen3-0.6B@1.0.0    a hub name, which is a lookup name of a model

Ids and aliases are strict where they are made (`check_id`, `check_alias`) and read leniently where
they are used: a name that nobody could have made is simply not found.
"""

import re
from dataclasses import dataclass

from serai.errors import InvalidInput
from serai.registry.errors import InvalidReference, InvalidVersionFormat
from serai.registry.semver import is_version

LATEST = "latest"
"""The alias that stands for the default version; it cannot be made, moved or deleted."""

AUTO = "auto"
"""What a client sends instead of a model to let the policy choose; no model or service has this id."""

MAX_LENGTH = 300

_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_HUB_NAME = re.compile(rf"{_SEGMENT}/{_SEGMENT}")
_REFERENCE = re.compile(rf"({_SEGMENT}(?:/{_SEGMENT})?)(?:([@:])({_SEGMENT}|[0-9][0-9A-Za-z.+-]{{0,99}}))?")
# '1', 'v1', '1.0', '1.x', '1.0-rc', '1.0.0junk' look like versions; '0.6b' and '8b' are sizes.
_LOOKS_LIKE_VERSION = re.compile(r"v?[0-9]+(?:\.(?:[0-9]+|x))*(?:[-+_].*)?|v?[0-9]+\.[0-9]+\.[0-9]+.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A parsed name. With neither version nor alias it means the default."""

    name: str
    version: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        selector = self.version or self.alias
        return f"{self.name}@{selector}" if selector else self.name

    @property
    def is_default(self) -> bool:
        return self.version is None and self.alias is None


def parse_reference(text: str) -> Reference:
    """Return what `text` names. Raises InvalidReference, or InvalidVersionFormat for `model@1.0`."""
    match = _REFERENCE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise InvalidReference(
            "The name of the model is not of a form that could exist.",
            details=[{"field": "model", "problem": "is not a reference to a model or service"}],
        )
    name, _, selector = match.groups()
    if selector is None or selector == LATEST:
        return Reference(name=name)
    if is_version(selector):
        return Reference(name=name, version=selector)
    if looks_like_version(selector) or "+" in selector:
        raise InvalidVersionFormat(f"{selector!r} is neither a semantic version nor a possible alias.")
    return Reference(name=name, alias=selector)


def check_id(text: str, field: str = "id") -> str:
    """Return `text` if it may be the id of a model or service. Raises InvalidInput."""
    if _SLUG.fullmatch(text) is None:
        raise InvalidInput.at(
            field,
            "must be 1 to 128 characters of a-z, 0-9, '.', '_' and '-', and start with a letter or digit",
        )
    if text in (LATEST, AUTO):
        raise InvalidInput.at(field, f"must not be {text!r}: the word has a meaning of its own")
    return text


def check_alias(text: str, field: str = "alias") -> str:
    """Return `text` if it may be an alias: an id that does not look like a version. Raises InvalidInput."""
    check_id(text, field)
    if looks_like_version(text):
        raise InvalidInput.at(field, "must not look like a version")
    return text


def check_lookup_name(text: str, field: str = "lookup_names") -> str:
    """Return `text` if it may be a further name of a model: an id, or a hub's 'owner/name'. Raises InvalidInput."""
    if _HUB_NAME.fullmatch(text) is None:
        check_id(text, field)
    return text


def is_hub_name(text: str) -> bool:
    """Say whether `text` has the form 'owner/name'."""
    return _HUB_NAME.fullmatch(text) is not None


def lookup_key(name: str) -> str:
    """Return the form in which names are compared: hubs ignore case, and so do the lookup names."""
    return name.lower()


def looks_like_version(text: str) -> bool:
    """Say whether a person could take `text` for a version, strict or not."""
    return _LOOKS_LIKE_VERSION.fullmatch(text) is not None
