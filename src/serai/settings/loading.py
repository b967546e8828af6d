"""Where settings come from: `serai.toml`, the environment, files, the command line."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from serai.errors import ConfigurationError
from serai.settings.model import HINT, URL_FIELDS, Settings, expanded, without_password

PREFIX = "SERAI_"
URL_FILE = "server.url"
"""Where in its home a running server says how it is reached from this machine."""
SECRET_PREFIX = "SERAI_SECRET_"  # noqa: S105 - the name of variables, not a secret
FILE_SUFFIX = "_FILE"
CONFIG_VARIABLE = "SERAI_CONFIG"
CONFIG_NAME = "serai.toml"
URL_VARIABLE, KEY_VARIABLE = "SERAI_URL", "SERAI_API_KEY"
"""For the command line, which is a client; a server takes no notice of them."""
_NOT_SETTINGS = frozenset({CONFIG_VARIABLE, URL_VARIABLE, KEY_VARIABLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Where the command line finds the server, and its key (None: there is none to be found)."""

    url: str
    api_key: str | None


def client_settings(url: str | None, api_key: str | None) -> ClientSettings:
    """Return what was given, else what the environment says, else this machine's server and its first key."""
    found_url, found_key = url or os.environ.get(URL_VARIABLE), api_key or os.environ.get(KEY_VARIABLE)
    if found_url is None:
        settings = load()
        said = settings.home / URL_FILE
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        found_url = said.read_text("utf-8") if os.access(said, os.R_OK) else f"http://{host}:{settings.port}"
        key_file = settings.home / "admin.key"
        if found_key is None and os.access(key_file, os.R_OK):
            found_key = key_file.read_text("utf-8").strip()
    return ClientSettings(url=found_url.rstrip("/"), api_key=found_key)


def load(
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings from `file` (TOML), then `environment`, then `overrides` (the command line).

    Without `file`, `SERAI_CONFIG` names it, else `serai.toml` in the working folder or in `home` is
    read if it is there. Raises ConfigurationError.
    """
    environment = os.environ if environment is None else environment
    variables = _from_environment(environment)
    values: dict[str, Any] = {}
    source = _find_file(environment, file, variables, overrides or {})
    if source is not None:
        values.update(_from_toml(source))
    values.update(variables)
    values.update({key: value for key, value in (overrides or {}).items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, values), hint=HINT) from None


def _find_file(
    environment: Mapping[str, str], file: Path | None, variables: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Path | None:
    named = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(f"The settings file {named} does not exist.", hint=HINT)
        return named
    home = expanded(Path(overrides.get("home") or variables.get("home") or Settings.model_fields["home"].default))
    return next((path for path in (Path(CONFIG_NAME), home / CONFIG_NAME) if path.is_file()), None)


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}", hint=HINT) from None
    secret = sorted(key for key in values if key in _SECRET_FIELDS)
    if secret:
        raise ConfigurationError(
            f"{', '.join(secret)}: a secret does not belong in {path.name}.",
            hint=f"Use {PREFIX}{secret[0].upper()} or {PREFIX}{secret[0].upper()}{FILE_SUFFIX}.",
        )
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    for variable, given in environment.items():
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        is_secret = variable.startswith(SECRET_PREFIX)
        key = variable.removeprefix(SECRET_PREFIX if is_secret else PREFIX).lower()
        text = given
        if key.endswith(FILE_SUFFIX.lower()) and (is_secret or key not in Settings.model_fields):
            key = key.removesuffix(FILE_SUFFIX.lower())
            text = _read_value_file(variable, given)
        if not is_secret and (key == "secrets" or key not in Settings.model_fields):
            raise ConfigurationError(f"{variable} is not a setting.{_nearest(key)}", hint=HINT)
        if key in (secrets if is_secret else values):
            plain = variable.removesuffix(FILE_SUFFIX)
            raise ConfigurationError(f"{plain} and {plain}{FILE_SUFFIX} are both set; only one may be.", hint=HINT)
        if is_secret:
            secrets[key] = text
        else:
            values[key] = _split(key, text)
    return {**values, "secrets": secrets} if secrets else values


def _split(key: str, text: str) -> Any:
    """Return a variable's text as the form of its setting: 'a,b' for a list, 'name=value,…' for a table."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if key in _MAP_FIELDS:
        return dict(_pair(key, part) for part in parts)
    return parts if key in _LIST_FIELDS else text


def _pair(key: str, part: str) -> tuple[str, str]:
    name, _, value = (piece.strip() for piece in part.partition("="))
    if not name or not value or name.startswith("{"):
        raise ConfigurationError(f"{PREFIX}{key.upper()} is written name=value,name=value.", hint=HINT)
    return name, value


def _read_value_file(variable: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{variable} names a file that cannot be read: {error}", hint=HINT) from None


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    lines = []
    for entry in error.errors(include_url=False, include_context=False):
        if not entry["loc"]:
            lines.append(entry["msg"].removeprefix("Value error, "))
            continue
        key = str(entry["loc"][0])
        if entry["type"] == "extra_forbidden":
            lines.append(f"{key} is not a setting.{_nearest(key)}")
            continue
        shown = "a secret" if key in _SECRET_FIELDS else repr(_shown(key, values.get(key)))
        allowed = entry["msg"].removeprefix("Value error, ")
        lines.append(f"{key} = {shown} is not allowed: {allowed[:1].lower()}{allowed[1:]}.")
    return "\n".join(lines)


def _nearest(key: str) -> str:
    import difflib

    close = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _shown(key: str, value: Any) -> Any:
    return without_password(value) if key in URL_FIELDS and isinstance(value, str) else value


_SECRET_FIELDS = frozenset({"jwt_secret", "jwt_previous_secrets", "secrets_key", "secrets"})
_LIST_FIELDS = frozenset(name for name, field in Settings.model_fields.items() if "tuple" in str(field.annotation))
_MAP_FIELDS = frozenset({"model_roots", "worker_environment"})
