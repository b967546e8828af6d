"""The models that there are, what is loaded, and names for them, as Ollama tells them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serai import __version__
from serai.api.access import Routes, actor_of, parts_of
from serai.api.answers import chats_of, json_response, serving_of
from serai.api.changes import change
from serai.api.ollama.encoding import moment
from serai.api.ollama.wire import CopyIn, Named, ShowIn
from serai.auth.policy import Role
from serai.errors import InvalidInput, SeraiError
from serai.registry import releases
from serai.registry.reference import LATEST, Reference, lookup_key, parse_reference
from serai.registry.snapshot import Candidate, ModelEntry, RegistrySnapshot
from serai.runtime.loaded import Loaded

routes = Routes("models")

_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
_CAPABILITIES = {"vision": "vision", "tools": "tools", "thinking": "thinking", "audio_input": "audio"}
_KNOWN_TASKS = {"chat": "completion", "embedding": "embedding", "image-generation": "image"}


@routes.get("/api/version", access=Role.VIEWER, operation_id="ollama_version", response_class=Response)
async def version(request: Request) -> Response:
    """Return this server's version."""
    return json_response({"version": __version__})


@routes.get("/api/tags", access=Role.VIEWER, operation_id="ollama_tags", response_class=Response)
async def tags(request: Request) -> Response:
    """List the models whose weights are here, services among them, each as name:tag."""
    snapshot = await parts_of(request).registry.current()
    listed = [
        _tag(candidate, f"{service_id}:{LATEST}")
        for service_id, service in sorted(snapshot.services.items())
        if service.binding is not None and (candidate := snapshot.meant_by(service.binding)) and _is_here(candidate)
    ]
    for _, entry in sorted(snapshot.models.items()):
        listed += [_tag(candidate, f"{entry.model.id}:{tag}") for tag, candidate in _tags(entry)]
    return json_response({"models": listed})


@routes.get("/api/ps", access=Role.VIEWER, operation_id="ollama_ps", response_class=Response)
async def ps(request: Request) -> Response:
    """List what is loaded."""
    snapshot = await parts_of(request).registry.current()
    shown = []
    for one in await serving_of(request).loaded():
        for name in one.versions:
            model, _, number = name.partition("@")
            entry = snapshot.models.get(model)
            candidate = entry.candidates.get(number) if entry is not None else None
            if candidate is not None:
                shown.append(_loaded(candidate, one.loaded, f"{model}:{number}"))
    return json_response({"models": shown})


@routes.post("/api/show", access=Role.VIEWER, operation_id="ollama_show", response_class=Response, rehearsable=False)
async def show(request: Request, body: ShowIn) -> Response:
    """Show one model with its card and template."""
    snapshot = await parts_of(request).registry.current()
    candidate = _named(snapshot, body.reference)
    try:
        template = await chats_of(request).template_of(candidate)
    except SeraiError:  # its weights are not here, or hold something that cannot be read
        template = None
    parameters = {
        name: parameter.default
        for name, parameter in candidate.version.parameters.items()
        if parameter.default is not None
    }
    model = candidate.model
    info: dict[str, Any] = {
        "general.architecture": _family(candidate),
        "general.basename": model.name,
        "general.description": model.description,
        "serai.model": model.id,
        "serai.version": candidate.version.version,
        "serai.engine": candidate.version.engine,
    }
    return json_response(
        {
            "modelfile": f"FROM {candidate.name}\n",
            "parameters": "\n".join(f"{name} {value}" for name, value in parameters.items()),
            "template": "" if template is None else template.source,
            "details": _details(candidate),
            "model_info": info,
            "capabilities": _capabilities(candidate),
            "license": candidate.version.licence or model.licence,
            "modified_at": moment(candidate.version.updated_at),
        }
    )


@routes.post("/api/copy", access=Role.MODERATOR, operation_id="ollama_copy", response_class=Response)
async def copy(request: Request, body: CopyIn) -> Response:
    """Give a version another name: an alias of its model, or a further name of the model."""
    parts = parts_of(request)
    snapshot = await parts.registry.current()
    source, destination = _named(snapshot, body.source), parse_reference(body.destination)
    if snapshot.find_model(destination.name) is snapshot.models[source.model.id]:
        if destination.alias is None:
            raise InvalidInput.at("destination", "names the model itself: choose another name or a tag")
        await _change(
            request,
            releases.put_alias,
            source.model.id,
            destination.alias,
            source.version.version,
            expected_from=None,
            check=False,
        )
    elif destination.is_default:
        names = (*source.model.lookup_names, destination.name)
        await _change(request, releases.update_model, source.model.id, {"lookup_names": names})
    else:
        raise InvalidInput.at("destination", "with a tag must be a name that the model has already")
    return Response(status_code=200)


@routes.delete("/api/delete", access=Role.ADMIN, operation_id="ollama_delete", response_class=Response)
async def delete(request: Request, body: Named) -> Response:
    """Remove what a name means: an alias, a further name, a version, or the model with all of them."""
    snapshot = await parts_of(request).registry.current()
    reference = parse_reference(body.reference)
    model = snapshot.resolve(Reference(name=reference.name)).model if reference.is_default else None
    candidate = None if model is not None else snapshot.resolve(reference)
    if candidate is not None and reference.alias is not None:
        await _change(request, releases.delete_alias, candidate.model.id, reference.alias)
    elif candidate is not None:
        await _change(request, releases.delete_version, candidate.model.id, candidate.version.version)
    elif model is not None and _is_further_name(model.id, model.lookup_names, reference.name):
        left = tuple(name for name in model.lookup_names if lookup_key(name) != lookup_key(reference.name))
        await _change(request, releases.update_model, model.id, {"lookup_names": left})
    elif model is not None:
        await _change(request, releases.delete_model, model.id)
    return Response(status_code=200)


async def _change(request: Request, command: Any, *args: Any, **kwargs: Any) -> None:
    parts = parts_of(request)
    await change(request, parts.registry.write, command, actor_of(request), parts.clock.now(), *args, **kwargs)


def _is_further_name(model_id: str, names: tuple[str, ...], name: str) -> bool:
    return name != model_id and lookup_key(name) in {lookup_key(one) for one in names} and "/" not in name


def _named(snapshot: RegistrySnapshot, text: str) -> Candidate:
    """Return the version that a name means; a service's binding, where it names a service."""
    reference = parse_reference(text)
    service = snapshot.services.get(reference.name) if reference.is_default else None
    if service is not None and service.binding is not None:
        candidate = snapshot.meant_by(service.binding)
        if candidate is not None:
            return candidate
    return snapshot.resolve(reference)


def _tags(entry: ModelEntry) -> list[tuple[str, Candidate]]:
    """Return the tags under which a model's versions that are here can be asked for."""
    found = [] if entry.default is None else [(LATEST, entry.default)]
    found += [(name, entry.candidates[number]) for name, number in sorted(entry.aliases.items())]
    found += list(entry.candidates.items())
    return [(tag, candidate) for tag, candidate in found if _is_here(candidate)]


def _is_here(candidate: Candidate) -> bool:
    return candidate.obstacle is None and candidate.missing is None


def _tag(candidate: Candidate, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": moment(candidate.version.updated_at),
        "size": sum(file.size for file in candidate.version.files),
        "digest": (candidate.version.digest or "").removeprefix("sha256:"),
        "details": _details(candidate),
        "capabilities": _capabilities(candidate),
    }


def _loaded(candidate: Candidate, loaded: Loaded, name: str) -> dict[str, Any]:
    is_cuda = loaded.device.startswith("cuda")
    shown = _tag(candidate, name)
    del shown["capabilities"], shown["modified_at"]
    return {
        **shown,
        "size": loaded.bytes,
        "size_vram": loaded.bytes if is_cuda else 0,
        "expires_at": moment(loaded.expires or _NEVER),
        "context_length": int(loaded.facts.get("context_tokens") or 0),
    }


def _details(candidate: Candidate) -> Mapping[str, Any]:
    family = _family(candidate)
    return {
        "parent_model": "",
        "format": _format(candidate),
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": candidate.version.quantization,
    }


def _family(candidate: Candidate) -> str:
    return candidate.model.id.partition("-")[0]


def _format(candidate: Candidate) -> str:
    suffixes = {file.path.rpartition(".")[2] for file in candidate.version.files}
    return next((suffix for suffix in ("safetensors", "gguf", "onnx") if suffix in suffixes), "ir" if suffixes else "")


def _capabilities(candidate: Candidate) -> list[str]:
    task = _KNOWN_TASKS.get(candidate.model.task)
    found = [name for ours, name in _CAPABILITIES.items() if ours in candidate.version.capabilities]
    return [*([task] if task else []), *found]
