"""What can go wrong while weights are fetched, each with the step that mends it."""

from serai.errors import Conflict, DiskFull, Forbidden, InvalidInput, NotFound, RateLimited, Unavailable, UpstreamFailed


class RepoNotFound(NotFound):
    code = "REPO_NOT_FOUND"
    default_hint = (
        "Check the spelling of 'owner/name'. A private repository needs a token: store one that may read it with "
        "PUT /secrets/{name}, under the name that the setting 'hub_token_secret' has."
    )


class RevisionNotFound(NotFound):
    code = "REVISION_NOT_FOUND"
    default_hint = "Give a branch, a tag or a commit that the repository has, or leave 'revision' out for 'main'."


class GatedRepo(Forbidden):
    """The repository asks for something first: terms to be accepted, or a token."""

    code = "GATED_REPO"
    default_hint = (
        "Accept the terms on the repository's page, make a token that may read it, and store it with "
        "PUT /secrets/{name} (the setting 'hub_token_secret' says which name), with the hub as its origin."
    )


class HubTokenRefused(Forbidden):
    code = "HUB_TOKEN_REFUSED"
    default_hint = "The stored token is wrong or has run out: make a new one and replace it with PUT /secrets/{name}."


class HubUnreachable(Unavailable):
    code = "HUB_UNREACHABLE"
    default_hint = (
        "Check the server's network, or set 'hub_endpoint' to a mirror. Without a network, put the files below a "
        "folder that 'model_roots' lists and pull 'folder:NAME/path'. What was fetched is kept."
    )


class HubFailed(Unavailable):
    """The hub answered that it cannot serve now (a status of 500 or more)."""

    code = "HUB_FAILED"
    default_hint = "The hub has trouble of its own; pull again later. What was fetched is kept."


class HubRateLimited(RateLimited):
    code = "HUB_RATE_LIMITED"
    default_hint = "The hub asks to wait; pull again after Retry-After. A stored token usually has a higher limit."


class HubNonsense(UpstreamFailed):
    """The hub answered something that no hub should."""

    code = "HUB_ANSWER_NOT_UNDERSTOOD"
    default_hint = "Check that 'hub_endpoint' is a hub of this kind and not a proxy's error page; then pull again."


class ChecksumMismatch(UpstreamFailed):
    """What came is not what was announced; it was thrown away."""

    code = "CHECKSUM_MISMATCH"
    may_pass = False
    default_hint = "Pull again: only this file is fetched anew. If it comes back, the source or a proxy is damaged."


class NotEnoughSpace(DiskFull):
    code = "NOT_ENOUGH_SPACE"
    may_pass = False
    default_hint = "Free the bytes that are missing (delete versions that nothing uses), then pull again."


class FilesRefused(InvalidInput):
    """There is nothing that is safe to take; `details` lists what was left, and why."""

    code = "FILES_REFUSED"
    default_hint = (
        "Choose a repository with safetensors or OpenVINO files. Pickle files run code when they are read: an admin "
        "who trusts them sets allow_pickle on the draft version that this pull fills."
    )


class FileNotAsNamed(Conflict):
    """A file's content is not of the kind that its name says, or is damaged; it was thrown away."""

    code = "FILE_NOT_AS_NAMED"
    default_hint = "Do not trust this source: take the weights from their publisher."


class UnknownFolder(NotFound):
    code = "UNKNOWN_MODEL_FOLDER"
    default_hint = "Write 'folder:NAME/path'; an admin lists the folders, with their names, in 'model_roots'."
