"""The one frozen settings object: defaults, then `serai.toml`, then `SERAI_…` variables.

Anything wrong (an unknown key, a value out of bounds, an unreadable file) stops the start with a
`ConfigurationError` that names the key, the value and what is allowed. A value that is a secret
comes from the environment or from a file (`SERAI_JWT_SECRET_FILE=/run/secrets/jwt`), never from
`serai.toml`, and prints as stars.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from serai.errors import ConfigurationError

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

Bytes = Annotated[int, Field(ge=0, le=2**50)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

MIB = 2**20
GIB = 2**30


class Settings(BaseModel):
    """Every setting, with its bounds. The description of a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    # Where it runs
    profile: Literal["development", "production"] = Field(
        "development", description="`production` is strict: auth cannot be switched off, logs are JSON."
    )
    home: Path = Field(
        Path("~/.serai"), description="Folder of everything the server keeps: database, blobs, keys, logs."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8713, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s?#@]+$",
        description="Address under which clients reach the server, if a proxy stands before it.",
        examples=["https://serai.example.com"],
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further Host names to answer to; loopback names, `host` and `public_url` always are."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks (CIDR) whose X-Forwarded-For is believed."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins of web pages that may call the API from a browser; none by default, never `*`."
    )
    shutdown_grace_s: Seconds = Field(20, description="How long SIGTERM lets running requests finish.")

    # Who may do what
    auth: Literal["on", "off"] = Field(
        "on", description="`off` makes every caller an admin; only on a loopback address in development."
    )
    jwt_secret: SecretStr | None = Field(
        None, min_length=32, description="Signs tokens; made once and kept under `home` if not given."
    )
    jwt_previous_secrets: tuple[Annotated[SecretStr, Field(min_length=32)], ...] = Field(
        (), description="Former signing secrets whose tokens are still accepted, for rotation."
    )
    jwt_ttl_s: Seconds = Field(900, description="Life of a token.")
    session_ttl_s: Seconds = Field(12 * 3600, description="Life of a browser's session.")
    secrets_key: SecretStr | None = Field(
        None, min_length=32, description="Encrypts the secret store; made once and kept under `home` if not given."
    )
    secrets: dict[str, SecretStr] = Field(
        {}, description="Values of named secrets: SERAI_SECRET_<NAME> or SERAI_SECRET_<NAME>_FILE."
    )
    rate_limits: Literal["on", "off"] = Field("on", description="Limits per key and per address.")
    rate_limit_per_minute: Count = Field(1200, description="Requests of one key in a minute.")
    rate_limit_per_hour: Count = Field(30_000, description="Requests of one key in an hour.")
    rate_limit_tokens_per_minute: Count = Field(1_000_000, description="Model tokens of one key in a minute.")
    address_limit_per_minute: Count = Field(
        300, description="Unauthenticated or refused requests of one address in a minute."
    )
    disk_quota_bytes: Bytes = Field(20 * GIB, description="What one user may keep in files.")
    min_free_disk_bytes: Bytes = Field(GIB, description="Uploads are refused when less would be left on the disk.")

    # Storage
    database_url: str | None = Field(
        None,
        pattern=r"^postgresql(\+psycopg)?://",
        description="`postgresql://user@host/name`; SQLite under `home` if not given. Password: PGPASSWORD or a "
        "passfile, or SERAI_DATABASE_URL_FILE.",
        examples=["postgresql://serai@localhost/serai"],
    )
    database_pool_size: int = Field(8, ge=1, le=200, description="Connections to PostgreSQL, or readers of SQLite.")
    database_timeout_s: Seconds = Field(10, description="How long to wait for a connection or a lock.")
    redis_url: str | None = Field(
        None,
        pattern=r"^rediss?://|^unix://",
        description="Shared cache and rate limits; in memory if not given.",
        examples=["redis://localhost:6379/0"],
    )
    cache_ttl_s: Seconds = Field(300, description="Life of a cached value.")
    cache_max_entries: Count = Field(50_000, description="Bound of the in-memory cache.")
    blobs_path: Path | None = Field(
        None,
        description="Folder of the blobs, shared by several servers; default in `home`.",
        examples=["/srv/serai/blobs"],
    )
    cleanup_interval_s: Seconds = Field(3600, description="How often what nothing refers to any more is removed.")
    blob_grace_s: Seconds = Field(3600, ge=60, description="Age before an unreferenced blob is removed.")

    # The way in
    max_body_bytes: Bytes = Field(64 * MIB, description="Largest request body.")
    max_json_bytes: Bytes = Field(8 * MIB, description="Largest JSON body.")
    max_header_bytes: Bytes = Field(32 * 1024, description="All request headers together.")

    # Opening what others made
    decode_memory_bytes: Bytes = Field(2 * GIB, description="Address space of the child that opens files.")
    decode_timeout_s: Seconds = Field(20, description="Time of the child that opens files.")
    max_image_pixels: int = Field(50_000_000, ge=1, le=2**31, description="Width × height of a picture.")
    max_media_seconds: Seconds = Field(4 * 3600, description="Duration of audio or video.")

    # The way out
    outbound_allow: tuple[str, ...] = Field(
        (), description="Host names or networks (CIDR) that may be called although they are not public."
    )
    outbound_timeout_s: Seconds = Field(30, description="Whole time of one outgoing call.")
    outbound_max_bytes: Bytes = Field(64 * MIB, description="Largest answer to an outgoing call.")

    # The registry
    deployment: Literal["private", "research", "commercial"] = Field(
        "private", description="What the server is used for; a licence that forbids it is skipped or refused."
    )
    max_active_versions_per_model: int = Field(5, ge=1, le=1000, description="Active versions of one model.")
    on_limit: Literal["refuse", "deprecate-oldest"] = Field(
        "refuse", description="What the active version over the limit meets: 409, or the oldest unused one goes."
    )
    default_version_status: Literal["draft", "active"] = Field("active", description="Status of a new version.")
    enable_version_immutability: bool = Field(True, description="Publishing a version makes it immutable.")
    allow_service_deprecated_version_switch: bool = Field(
        False, description="A service may be bound or switched to a deprecated version."
    )
    warn_on_deprecated_version_usage: bool = Field(
        True, description="Answers of a deprecated version carry a Deprecation header and a warning."
    )

    # Jobs
    job_concurrency: int = Field(2, ge=1, le=1000, description="Jobs without a model that run at the same time.")
    job_max_queued: Count = Field(10_000, description="Jobs that may wait; further ones are refused with 503.")
    job_lease_s: Seconds = Field(30, description="How long a server that went silent keeps its jobs.")
    job_crash_limit: int = Field(3, ge=1, le=100, description="A job that took its server down so often fails.")
    job_retention_days: float = Field(30, gt=0, le=36_500, description="How long jobs that ended are kept.")

    # What it tells
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: JSON in production or without a terminal, else console."
    )
    log_max_bytes: Bytes = Field(20 * MIB, description="Size at which a log file is rotated.")
    log_backups: int = Field(5, ge=0, le=100, description="Rotated log files that are kept.")

    @field_validator("home", "blobs_path")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return _expanded(path).absolute() if path is not None else None

    @field_validator("public_url", "allowed_hosts", "cors_origins")
    @classmethod
    def _lower(cls, names: Any) -> Any:
        """Host names know no case; browsers send them in lower case, and they are compared as text."""
        return tuple(name.lower() for name in names) if isinstance(names, tuple) else names and names.lower()

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ip_network(network, strict=False)
        return networks

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or any(c in host for c in "/*?# "):
                raise ValueError("an origin is written 'https://host' or 'https://host:port', without wildcard or path")
        return origins

    @model_validator(mode="after")
    def _strict_in_production(self) -> Self:
        if self.profile == "production" and self.auth == "off":
            raise ValueError("auth = 'off' is not allowed with profile = 'production'")
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"auth = 'off' is not allowed with host = '{self.host}': only on a loopback address")
        return self

    @property
    def sqlite_path(self) -> Path:
        return self.home / "serai.db"

    @property
    def blobs_folder(self) -> Path:
        return self.blobs_path or self.home / "blobs"

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return self.public().items()

    def public(self) -> dict[str, Any]:
        """Return the settings in force as JSON values, secrets and passwords as stars."""
        values = self.model_dump(mode="json")
        return {name: _without_password(value) if name in _URL_FIELDS else value for name, value in values.items()}


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


def is_loopback(host: str) -> bool:
    """Say whether a server that listens on `host` is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
        raise ConfigurationError(_explain(error, values), hint=_HINT) from None


_HINT = "serai.toml.example lists every setting with its bounds and default."


def _find_file(
    environment: Mapping[str, str], file: Path | None, variables: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Path | None:
    named = file or (Path(environment[CONFIG_VARIABLE]) if environment.get(CONFIG_VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigurationError(f"The settings file {named} does not exist.", hint=_HINT)
        return named
    home = _expanded(Path(overrides.get("home") or variables.get("home") or Settings.model_fields["home"].default))
    return next((path for path in (Path(CONFIG_NAME), home / CONFIG_NAME) if path.is_file()), None)


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML: {error}", hint=_HINT) from None
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
            raise ConfigurationError(f"{variable} is not a setting.{_nearest(key)}", hint=_HINT)
        if key in (secrets if is_secret else values):
            plain = variable.removesuffix(FILE_SUFFIX)
            raise ConfigurationError(f"{plain} and {plain}{FILE_SUFFIX} are both set; only one may be.", hint=_HINT)
        if is_secret:
            secrets[key] = text
        else:
            values[key] = [part.strip() for part in text.split(",") if part.strip()] if key in _LIST_FIELDS else text
    return {**values, "secrets": secrets} if secrets else values


def _read_value_file(variable: str, path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{variable} names a file that cannot be read: {error}", hint=_HINT) from None


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


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(f"{path} names the home folder of a user that is not known.", hint=_HINT) from None


def _shown(key: str, value: Any) -> Any:
    return _without_password(value) if key in _URL_FIELDS and isinstance(value, str) else value


def _without_password(url: str | None) -> str | None:
    """Return the URL with stars for its password, wherever drivers look for one; all stars for what is no URL."""
    if url is None:
        return None
    scheme, colon_slashes, rest = url.partition("://")
    if not colon_slashes:
        return "***"
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    place = re.sub(r"(?i)((?:^|[?&])[^=&?]*pass[^=&]*=)[^&]*", r"\1***", place)
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}"


_SECRET_FIELDS = frozenset({"jwt_secret", "jwt_previous_secrets", "secrets_key", "secrets"})
_URL_FIELDS = frozenset({"database_url", "redis_url"})
_LIST_FIELDS = frozenset(name for name, field in Settings.model_fields.items() if "tuple" in str(field.annotation))
