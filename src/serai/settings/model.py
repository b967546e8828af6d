"""Every setting, with its bounds."""

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from serai.errors import ConfigurationError

Bytes = Annotated[int, Field(ge=0, le=2**50)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

MIB = 2**20
GIB = 2**30

HINT = "serai.toml.example lists every setting with its bounds and default."


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

    # Models in memory
    cpu_memory_share: float = Field(
        0.6, gt=0, le=0.95, description="Share of the machine's memory (or of its limit) that all models share."
    )
    gpu_memory_share: float = Field(0.9, gt=0, le=0.9, description="Share of each graphics card's memory.")
    cpu_memory_bytes: Bytes | None = Field(
        None, description="The models' share of memory in bytes, in place of cpu_memory_share.", examples=[8 * GIB]
    )
    worker_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads of one model on the processor; half of the cores if not given, so that two run at once.",
        examples=[4],
    )
    keep_alive_s: float = Field(
        300, ge=-1, le=366 * 86400, description="How long a model stays after its last use; -1: until there is no room."
    )
    load_timeout_s: Seconds = Field(600, description="How long a load may take.")
    worker_silence_s: Seconds = Field(120, description="A worker that runs and says nothing for so long is ended.")
    request_timeout_s: float = Field(
        300, ge=1, le=600, description="How long a request may take, its wait for a model included, if it does not say."
    )
    max_waiting_requests: Count = Field(256, description="Requests that may wait for a model; 503 for further ones.")
    max_waiting_requests_per_key: Count = Field(64, description="The same of one key.")
    model_roots: dict[str, Path] = Field(
        {}, description="Folders with weights, by the names that a version's source uses."
    )
    worker_environment: dict[str, str] = Field(
        {},
        description="Variables for the processes of models, which see nothing of the server's: CUDA_VISIBLE_DEVICES.",
    )
    models_path: Path | None = Field(
        None,
        description="Folder of the weights that were pulled; default in `home`.",
        examples=["/srv/serai/models"],
    )

    decision_retention_days: float = Field(
        90, gt=0, le=36_500, description="How long it is kept which version answered, and why."
    )

    # Pulling models
    hub_endpoint: str = Field(
        "https://huggingface.co",
        pattern=r"^https?://[^/\s?#@]+$",
        description="Address of the hub, or of a mirror that speaks its API.",
    )
    hub_token_secret: str = Field(
        "hf_token",
        min_length=1,
        max_length=128,
        description="Name of the secret that is sent to the hub, if there is one.",
    )
    hub_cache_path: Path | None = Field(
        None,
        description="Cache of the hub's own tools, whose files are used and not fetched again.",
        examples=["/srv/huggingface/hub"],
    )
    max_concurrent_pulls: int = Field(2, ge=1, le=64, description="Pulls that run at the same time.")
    pull_connections: int = Field(4, ge=1, le=32, description="Files of one pull that are fetched at the same time.")
    q4_threshold_bytes: Bytes = Field(
        14_000_000_000, description="`quantize: auto` takes 4 bits for weights of more than this, at 16 bits each."
    )
    pull_partial_days: float = Field(7, gt=0, le=3650, description="How long parts of abandoned pulls are kept.")

    # Pictures
    image_concurrency: int = Field(
        8, ge=1, le=256, description="Jobs that make pictures at the same time; those of one model share its steps."
    )
    image_max_queued: Count = Field(1000, description="Such jobs that may wait; further ones are refused with 503.")
    image_metadata: Literal["on", "off"] = Field(
        "on", description="Whether what made a picture is written into its file."
    )
    image_retention_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="How long pictures are kept that are no favourites; for ever if not given.",
        examples=[365.0],
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

    @field_validator("home", "blobs_path", "models_path", "hub_cache_path")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        return expanded(path).absolute() if path is not None else None

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

    @property
    def models_folder(self) -> Path:
        return self.models_path or self.home / "models"

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        return self.public().items()

    def public(self) -> dict[str, Any]:
        """Return the settings in force as JSON values, secrets and passwords as stars."""
        values = self.model_dump(mode="json")
        return {name: without_password(value) if name in URL_FIELDS else value for name, value in values.items()}


def is_loopback(host: str) -> bool:
    """Say whether a server that listens on `host` is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def expanded(path: Path) -> Path:
    """Return `path` with `~` resolved. Raises ConfigurationError for a user who is not known."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(f"{path} names the home folder of a user that is not known.", hint=HINT) from None


def without_password(url: str | None) -> str | None:
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


URL_FIELDS = frozenset({"database_url", "redis_url"})
