"""The hub of Hugging Face, or a mirror that speaks its API, asked by its own client library.

The library says what there is: it resolves the revision, lists the files with their sizes and digests,
and knows the hub's errors. It does not do the transfer. Its downloads go to a file of a new name each
time and start from 0 after a process was killed (huggingface_hub 2.4, `_download_to_tmp_and_move`), do
not stop when a task is cancelled, and count in a progress bar; so the bytes come through `read_range`.

Every request of both kinds passes the guard of the way out. Of the library's own habits none is left:
no token from the environment or the home folder, no xet transfer, no counting of users, no file written.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from serai.errors import DeadlineExceeded, InvalidInput, SeraiError, UpstreamFailed
from serai.hub.errors import GatedRepo, HubNonsense, HubTokenRefused, RepoNotFound, RevisionNotFound
from serai.hub.model import Listing, Reading, RemoteFile
from serai.hub.transfer import Answered, read_range, trouble, unreachable
from serai.outbound import Outbound, OutboundSecret
from serai.registry.licences import find_licence
from serai.registry.source import FileSource, FolderSource, HubSource

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

DEFAULT_ADDRESS = "https://huggingface.co"
FindSecret = Callable[[], Awaitable[OutboundSecret | None]]

TASKS = {
    "text-generation": "chat",
    "image-text-to-text": "chat",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "text-to-image": "image-generation",
    "image-to-image": "image-edit",
    "image-segmentation": "background-removal",
    "text-to-speech": "text-to-speech",
    "automatic-speech-recognition": "speech-to-text",
}
"""From the hub's words for what a model does to the registry's."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


async def no_secret() -> OutboundSecret | None:
    """Return no token: what is public is read."""
    return None


class HuggingFaceHub:
    """`Hub` for HubSource. `address`: the hub's or a mirror's, `https://host[:port]` with an optional path."""

    def __init__(
        self,
        outbound: Outbound,
        *,
        address: str = DEFAULT_ADDRESS,
        find_secret: FindSecret = no_secret,
        cache_folder: Path | None = None,
    ) -> None:
        """`find_secret` is asked once per call; `cache_folder`: of the hub's own tools, whose files are reused."""
        self._outbound = outbound
        self._address = address.rstrip("/")
        self._find_secret = find_secret
        self._cache = cache_folder

    async def look(self, source: HubSource) -> Listing:
        secret = await self._find_secret()
        info = await asyncio.to_thread(self._ask, source, secret, asyncio.get_running_loop())
        try:
            return _listing(source, info)
        except (TypeError, AttributeError) as error:
            raise HubNonsense(f"The hub's answer about {source.repo} cannot be read.") from error

    @asynccontextmanager
    async def read(
        self, listing: Listing, file: RemoteFile, *, start: int = 0, etag: str | None = None
    ) -> AsyncIterator[Reading]:
        source = _hub_source(listing)
        url = f"{self._address}/{source.repo}/resolve/{source.revision}/{quote(file.path)}"
        secret = await self._find_secret()
        try:
            async with read_range(self._outbound, url, file, start=start, etag=etag, secret=secret) as reading:
                yield reading
        except Answered as answer:
            code = answer.headers.get("x-error-code", "")
            raise _refusal(answer.status, code, source, secret) or trouble(
                answer.status, answer.headers, source.repo
            ) from None

    async def cached(self, listing: Listing, file: RemoteFile) -> Path | None:
        if self._cache is None:
            return None
        return await asyncio.to_thread(_find_cached, self._cache, _hub_source(listing), file)

    def _ask(self, source: HubSource, secret: OutboundSecret | None, loop: asyncio.AbstractEventLoop) -> "ModelInfo":
        """Ask for the sizes too: without them progress would have no total."""
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        from serai.outbound.blocking import way_out

        try:
            with way_out(self._outbound, loop, secret):
                api = _library()(endpoint=self._address, token=False)
                return api.model_info(source.repo, revision=source.revision, files_metadata=True)
        except HFValidationError:
            raise InvalidInput.at("model", "is not a name that a repository of the hub can have") from None
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            code = headers.get("x-error-code", "")
            raise _refusal(status, code, source, secret) or trouble(status, headers, source.repo) from None
        except (UpstreamFailed, DeadlineExceeded) as error:
            raise unreachable(error, source.repo) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise HubNonsense(f"The hub's answer about {source.repo} cannot be read.") from error


@cache
def _library() -> "type[HfApi]":
    """Import the client library and take its own ways out and habits from it; blocks for a moment."""
    from huggingface_hub import HfApi, constants, set_client_factory

    from serai.outbound.blocking import guarded_client

    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    set_client_factory(guarded_client)
    return HfApi


def _listing(source: HubSource, info: "ModelInfo") -> Listing:
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise HubNonsense(f"The hub names no commit for {source.repo}.")
    files = tuple(_remote_file(sibling) for sibling in info.siblings or ())
    architectures = _architectures(info.config if isinstance(info.config, dict) else {})
    safetensors = getattr(info.safetensors, "total", None)
    return Listing(
        source=msgspec.structs.replace(source, revision=info.sha),
        name=source.repo,
        files=files,
        licence=_licence(info),
        task=TASKS.get(info.pipeline_tag or "", ""),
        architectures=architectures,
        parameters=safetensors if isinstance(safetensors, int) and safetensors > 0 else None,
    )


def _architectures(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the classes that a model's or a pipeline's configuration names."""
    architectures, pipeline = config.get("architectures"), config.get("diffusers")
    if isinstance(architectures, list):
        return tuple(map(str, architectures))
    name = pipeline.get("_class_name") if isinstance(pipeline, dict) else None
    return (name,) if isinstance(name, str) else ()


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    size = lfs.size if lfs is not None else sibling.size
    digest = lfs.sha256 if lfs is not None else None
    if not isinstance(sibling.rfilename, str) or not isinstance(size, int):
        raise HubNonsense("The hub does not tell the size of every file.")
    if digest is not None and not _SHA256.fullmatch(digest):
        raise HubNonsense("The hub tells a digest that is none.")
    git_id = sibling.blob_id if digest is None and _COMMIT.fullmatch(sibling.blob_id or "") else None
    return RemoteFile(path=sibling.rfilename, size=size, sha256=digest, git_id=git_id)


def _licence(info: "ModelInfo") -> str:
    said = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")
    known = find_licence(said)
    return known.id if known is not None else said


def _refusal(status: int, code: str, source: HubSource, secret: OutboundSecret | None) -> SeraiError | None:
    """Return the error for what the hub says of a repository, None where it says nothing of it.

    A hub hides what is private: without a token it answers 401 for what does not exist as well.
    """
    repo = source.repo
    match code:
        case "RepoNotFound":
            return RepoNotFound(f"The hub has no repository {repo}, or none that it shows.")
        case "RevisionNotFound":
            return RevisionNotFound(f"The repository {repo} has no revision {source.revision}.")
        case "EntryNotFound":
            return HubNonsense(f"The hub lists a file of {repo} that it does not have.")
        case "GatedRepo":
            return _gated(repo, secret)
    if status == 401 and secret is not None:
        return HubTokenRefused(f"The hub did not accept the token for {repo}.")
    if status in (401, 403):
        return _gated(repo, secret)
    if status == 404:
        return RepoNotFound(f"The hub has no repository {repo}.")
    return None


def _gated(repo: str, secret: OutboundSecret | None) -> GatedRepo:
    if secret is None:
        return GatedRepo(f"The repository {repo} is gated, and there is no token for the hub.")
    hint = "Ask for access on the repository's page with the account of the token, and pull again when it is given."
    return GatedRepo(f"The account of the token has no access to {repo}.", hint=hint)


def _find_cached(cache_folder: Path, source: HubSource, file: RemoteFile) -> Path | None:
    """Return the file in the layout of the hub's own cache; nothing outside of that folder counts. Blocks."""
    root = cache_folder.resolve()
    place = root / f"models--{source.repo.replace('/', '--')}"
    names = [place / "blobs" / name for name in (file.sha256, file.git_id) if name]
    for path in (*names, place / "snapshots" / source.revision / file.path):
        real = path.resolve()
        if real.is_relative_to(root) and real.is_file() and real.stat().st_size == file.size:
            return real
    return None


def _hub_source(listing: Listing) -> HubSource:
    source: HubSource | FolderSource | FileSource = listing.source
    if not isinstance(source, HubSource):
        raise TypeError("this hub reads hub sources only")
    return source
