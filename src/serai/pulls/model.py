"""What is asked for, and what was decided. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urldefrag

import msgspec

from serai.errors import InvalidInput, SeraiError
from serai.hub.choice import Choice
from serai.hub.model import Listing, PulledSource
from serai.registry.parameters import Parameter
from serai.registry.reference import check_id, parse_reference
from serai.registry.source import FileSource, FolderSource
from serai.registry.version import Status

Quantize = Literal["auto", "q4", "q8", "fp16", "fp32", "no"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
Stage = Literal["resolve", "download", "verify", "convert", "register", "load"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_FOLDER = "folder:"


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /pull`, and the payload of the job."""

    model: str
    """A hub's 'owner/name', an id of the registry (also 'id@1.0.0'), 'folder:ROOT/path', 'https://…#sha256=…'."""
    revision: str | None = None
    """Branch, tag or commit of a hub's repository."""
    quantize: Quantize = "auto"
    init: bool = False
    """Load the version once it is registered."""
    name: str | None = None
    """Id of the model in the registry; made from the repository's name if not given."""

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> "PullRequest":
        """Return the request in a job's payload. Raises InvalidInput that names the field."""
        try:
            request = msgspec.convert(dict(payload), cls)
        except msgspec.ValidationError as error:
            raise InvalidInput.at("payload", f"is not a pull: {error}") from None
        request.check()
        return request

    def check(self) -> None:
        """Refuse what could never be pulled. Raises InvalidInput, InvalidReference."""
        if self.name is not None:
            check_id(self.name, "name")
        if self.source() is None:
            parse_reference(self.model)
        elif self.revision is not None:
            raise InvalidInput.at("revision", "is for repositories of a hub alone")
        if self.revision is not None and (not _REVISION.fullmatch(self.revision) or ".." in self.revision):
            raise InvalidInput.at("revision", "is not a branch, a tag or a commit")

    def source(self) -> FolderSource | FileSource | None:
        """Return the folder or file that `model` names; None where it is the name of a model. Raises InvalidInput."""
        if self.model.startswith(_FOLDER):
            root, _, path = self.model.removeprefix(_FOLDER).partition("/")
            parts = path.split("/")
            if not _ROOT.fullmatch(root) or len(path) > 500 or not path.isprintable() or {"", ".", ".."} & set(parts):
                raise InvalidInput.at("model", "must be 'folder:ROOT/path' without '..'")
            return FolderSource(root=root, path=path)
        if self.model.lower().startswith(("https://", "http://")):
            url, fragment = urldefrag(self.model)
            digest = fragment.removeprefix("sha256=")
            if not _DIGEST.fullmatch(digest) or len(url) > 500:
                raise InvalidInput.at(
                    "model",
                    "must end in '#sha256=' and 64 hexadecimal digits: a file of an address is taken by its digest",
                )
            return FileSource(url=url, sha256=digest)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PullPolicy:
    """The machine for which a pull chooses."""

    device: Literal["cpu", "cuda"] = "cpu"
    budget_bytes: int | None = None
    """Memory for models on the device; None for no bound."""
    q4_threshold_bytes: int = 14_000_000_000
    """`quantize: auto` takes 4 bits for weights (at 16 bits) of more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request means in the registry as it stands."""

    source: PulledSource
    model_id: str | None
    """The model that it becomes a version of; None where its name is made from the source."""
    name: str | None
    """The id that was asked for, for a model that is not there yet."""
    draft: str | None = None
    """The version without files that this pull may fill."""
    allow_pickle: bool = False
    allow_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done: fetched, converted or not, registered as."""

    wanted: Wanted
    listing: Listing
    choice: Choice
    model_id: str
    quantization: str
    """As the version will say it: none, int8, int4, nf4, fp16, fp32."""
    convert: bool
    why: str
    """The decision on quantization and conversion, in a sentence."""
    status: Status
    """What the version becomes, as far as the limit allowed when this was planned."""
    scratch_bytes: int
    """Disk that the conversion needs besides the download."""
    warnings: tuple[str, ...] = ()

    def decision(self) -> dict[str, Any]:
        """Return what is kept with the job: enough to go on after a restart with the same commit."""
        return {
            "source": msgspec.to_builtins(self.listing.source),
            "model": self.model_id,
            "quantization": self.quantization,
            "convert": self.convert,
            "why": self.why,
            "total_bytes": self.choice.total_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """What a converter is asked to make."""

    quantization: str
    """int8, int4, fp16 or fp32."""
    weight_bytes: int
    task: str = ""
    """One of the registry's, empty where it is not known."""
    allow_remote_code: bool = False


class Report(Protocol):
    """Takes how far the work is, from 0 to 1; may be called from any task of the event loop."""

    def __call__(self, fraction: float, /) -> None: ...


class Converter(Protocol):
    """The seam between a pull and what turns fetched weights into what an engine reads."""

    def obstacle(self, architectures: Sequence[str], task: str = "") -> SeraiError | None:
        """Return why weights of these architectures could not be converted here for a task, None where they could.

        Asked before the first byte; does not block. `architectures` is empty where they are not known.
        """
        ...

    async def convert(self, folder_in: Path, folder_out: Path, plan: ConversionPlan, report: Report) -> None:
        """Write the whole model, tokenizer and configuration included, to `folder_out`, which it makes.

        Does not block the event loop. Being cancelled it stops its worker; what it has written is thrown
        away. Raises SeraiError with the remedy.
        """
        ...


class Loader(Protocol):
    """The seam for `init`: bringing a registered version into memory."""

    async def load(self, model_id: str, version: str, /) -> None:
        """Return when it is loaded. Raises SeraiError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What a pull brought, before it is a version."""

    plan: Plan
    memory_bytes: int
    """Estimate for the loaded model."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    """What the files say of settings: their defaults, and which values the model takes at all."""

    def with_plan(self, plan: Plan) -> "Arrival":
        return replace(self, plan=plan)
