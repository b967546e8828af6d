"""Who draws, and with which settings. Pure: it reads a snapshot, a version and what was asked."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from serai.engines.options import RemoteOptions
from serai.engines.tasks import Array, GenerateImage
from serai.errors import InvalidInput
from serai.images.bounds import find_declared, first_seed, number, sides, whole
from serai.images.model import Format, ImageRequest, ImageSettings
from serai.registry.errors import CandidateInCooldown, NoCandidate
from serai.registry.failure import Situation
from serai.registry.plan import Plan, Request
from serai.registry.policy import make_plan
from serai.registry.reference import AUTO, parse_reference
from serai.registry.snapshot import Candidate, RegistrySnapshot
from serai.registry.source import RemoteSource
from serai.registry.version import Version

GENERATION: Final = "image-generation"
EDIT: Final = "image-edit"

PREVIEWS: Final = 5
"""How many previews of a picture are shown where nobody says."""
MAX_SCALE: Final = 4.0
"""Of an adapter, as requests may give it."""
QUALITY: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Every setting as it is used."""

    width: int
    height: int
    images: int
    steps: int
    guidance_scale: float
    seed: int
    max_sequence_length: int | None
    strength: float | None
    """None where there is no picture to start from, and where it is edited as a whole."""
    adapters: tuple[tuple[str, float], ...]
    """Each adapter that the version declares, with the scale that it has."""
    chooses_adapters: bool
    """Whether the request gave the scales."""
    format: Format
    quality: int | None
    """None for PNG."""
    reproducible: bool
    previews: int
    """At most so many of each picture."""
    steps_made: int
    """Of image-to-image fewer than `steps`."""

    @property
    def preview_steps(self) -> int:
        """After how many steps a preview is made; 0: after none. Where they do not divide evenly, there are more."""
        return max(1, self.steps_made // (self.previews + 1)) if self.previews else 0

    def settings(self) -> dict[str, Any]:
        """Return them as `ImageSettings` in JSON: sent again, they give the same pictures.

        Without `reproducible`, which says nothing of the picture: with a seed it is the default.
        """
        told: dict[str, Any] = {
            "width": self.width,
            "height": self.height,
            "num_images": self.images,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "format": self.format,
        }
        for name in ("max_sequence_length", "strength", "quality"):
            if getattr(self, name) is not None:
                told[name] = getattr(self, name)
        if self.adapters and all(abs(scale) <= MAX_SCALE for _, scale in self.adapters):
            told["adapters"] = [{"id": name, "scale": scale} for name, scale in self.adapters]
        return told

    def task(self, asked: ImageRequest, source: Array | None = None, mask: Array | None = None) -> GenerateImage:
        """Return the task for a model; `source` and `mask` have the size that is wanted."""
        return GenerateImage(
            prompt=asked.prompt,
            negative_prompt=asked.negative_prompt,
            width=self.width,
            height=self.height,
            images=self.images,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            max_sequence_length=self.max_sequence_length,
            source=source,
            mask=mask,
            strength=0.8 if self.strength is None else self.strength,
            adapter_scales=dict(self.adapters) if self.chooses_adapters else {},
            reproducible=self.reproducible,
            preview_steps=self.preview_steps,
        )


def accepts(snapshot: RegistrySnapshot, situation: Situation, asked: ImageRequest) -> Candidate:
    """Return who would draw this now, once every setting is one that it takes.

    Raises what `make_plan` raises, and InvalidInput that names the field, the bound and the value. Whoever
    failed a short while ago is no reason to refuse: the job waits until it may be tried again.
    """
    if not _is_variation(asked):
        check_prompt(asked.prompt)
    try:
        candidate = planned(snapshot, situation, asked).candidate
    except CandidateInCooldown:
        candidate = planned(snapshot, replace(situation, cooldowns={}), asked).candidate
    resolved(candidate.version, asked, seed=0, task=candidate.model.task)
    return candidate


def check_prompt(prompt: str) -> None:
    """Raise InvalidInput for a prompt that says nothing."""
    if not prompt.strip():
        raise InvalidInput.at("prompt", "is empty", hint="Say what the picture is to show.")


def planned(snapshot: RegistrySnapshot, situation: Situation, asked: ImageRequest) -> Plan:
    """Return the order of candidates for a request. `plan.request` is what serving is asked for.

    Raises what `make_plan` raises; InvalidInput for a model of another task, and where a picture is given
    that none of them can start from.
    """
    if asked.mask is not None and asked.image is None:
        raise InvalidInput.at("mask", "needs an image to be laid over")
    named = asked.service is not None or asked.model not in (None, AUTO)
    if not named:
        return _automatic(snapshot, situation, asked)
    request = Request(service=asked.service, model=asked.model)
    if asked.service is None and asked.model is not None:  # the wrong task is said before what the model lacks
        entry = snapshot.find_model(parse_reference(asked.model).name)
        if entry is not None and entry.model.id not in snapshot.services:
            _check_task(asked, entry.model.task)
    return _able(snapshot, situation, asked, make_plan(snapshot, request, situation))


def resolved(
    version: Version,
    asked: ImageRequest,
    *,
    seed: int,
    source_size: tuple[int, int] | None = None,
    task: str = GENERATION,
) -> Resolved:
    """Return every setting of a request for one version: as asked, else as the version says, else as is usual.

    `seed`: where neither gives one; it is moved into the version's bounds. `source_size`: of the picture to
    start from; where the request gives no size, the result has its proportions. `task`: the model's. Raises
    InvalidInput that names field, bound and value.
    """
    try:
        return _resolved(version, asked, seed, source_size, task)
    except InvalidInput as error:
        error.hint = error.hint or f"GET /models/{version.model_id} shows what each of its versions takes."
        raise


def _resolved(
    version: Version, asked: ImageRequest, seed: int, source_size: tuple[int, int] | None, task: str
) -> Resolved:
    given = asked.settings
    _check_negative_prompt(version, asked)
    width, height = sides(version, given, source_size)
    steps = whole(version, "num_inference_steps", given.num_inference_steps)
    images = whole(version, "num_images", given.num_images)
    strength = _strength(version, asked, task)
    return Resolved(
        width=width,
        height=height,
        images=images,
        steps=steps,
        guidance_scale=number(version, "guidance_scale", given.guidance_scale),
        seed=first_seed(version, given.seed, seed, images),
        max_sequence_length=_sequence_length(version, given.max_sequence_length),
        strength=strength,
        adapters=_adapters(version, given),
        chooses_adapters=given.adapters is not None,
        format=given.format,
        quality=None if given.format == "png" else given.quality or QUALITY,
        reproducible=given.seed is not None if given.reproducible is None else given.reproducible,
        previews=PREVIEWS if asked.previews is None else asked.previews,
        steps_made=steps if strength is None else max(1, int(steps * strength)),
    )


# Who draws


def _automatic(snapshot: RegistrySnapshot, situation: Situation, asked: ImageRequest) -> Plan:
    """Choose among all models of the task; a picture goes to one that edits, else to one that can start from it.

    A variation goes to those the other way round: who edits is not told by it what to do.
    """
    draw = Request(task=GENERATION, capabilities=_needs(GENERATION, asked))
    if asked.image is not None:
        edit = Request(task=EDIT, capabilities=_needs(EDIT, asked))
        for request in (draw, edit) if _is_variation(asked) else (edit, draw):
            with suppress(NoCandidate):
                return make_plan(snapshot, request, situation)
    return _explained(asked, snapshot, situation, draw)


def _able(snapshot: RegistrySnapshot, situation: Situation, asked: ImageRequest, plan: Plan) -> Plan:
    """Return the plan with those alone who can do what is asked; the task of a service is that of its whole chain."""
    candidate = plan.candidate
    _check_task(asked, candidate.model.task)
    if candidate.model.task == EDIT and asked.image is None:
        raise InvalidInput.at("image", f"is missing: {candidate.name} edits a picture")
    needs = _needs(candidate.model.task, asked)
    if not needs:
        return plan
    return _explained(asked, snapshot, situation, replace(plan.request, capabilities=needs))


def _check_task(asked: ImageRequest, task: str) -> None:
    if task in (GENERATION, EDIT):
        return
    field = "service" if asked.service is not None else "model"
    raise InvalidInput.at(
        field,
        f"names {getattr(asked, field)!r}, which does {task}, not {GENERATION}",
        hint=f"GET /models?task={GENERATION} lists the models that do.",
    )


def _explained(asked: ImageRequest, snapshot: RegistrySnapshot, situation: Situation, request: Request) -> Plan:
    try:
        return make_plan(snapshot, request, situation)
    except NoCandidate as error:
        entries = [entry for entry in error.details or () if isinstance(entry, Mapping)]
        if not request.capabilities or not all("cannot do" in str(entry.get("why")) for entry in entries):
            raise
        field = "image" if asked.mask is None else "mask"
        wanted = ", ".join(sorted(request.capabilities))
        raise InvalidInput.at(
            field,
            f"cannot be used: nobody who may answer can do {wanted}",
            hint=f"Choose a version that has {wanted} among its capabilities: GET /models/{{id}} shows them.",
        ) from None


def _is_variation(asked: ImageRequest) -> bool:
    """Say whether another picture like the one given is wanted: that alone goes without a word."""
    return not asked.prompt and asked.image is not None and asked.mask is None


def _needs(task: str, asked: ImageRequest) -> frozenset[str]:
    """Return what a version must say that it can do; what edits need not say that it edits."""
    if asked.image is None:
        return frozenset()
    if asked.mask is not None:
        return frozenset({"inpaint"})
    return frozenset() if task == EDIT else frozenset({"image_to_image"})


# With which settings


def _strength(version: Version, asked: ImageRequest, task: str) -> float | None:
    strength = asked.settings.strength
    if asked.image is None:
        why = "needs an image to start from"
    elif task == EDIT and asked.mask is None and find_declared(version, "strength") is None:
        why = "is nothing that this model takes: it edits the picture as a whole"
    else:
        return number(version, "strength", strength)
    if strength is not None:
        raise InvalidInput.at("settings.strength", why)
    return None


def _check_negative_prompt(version: Version, asked: ImageRequest) -> None:
    """Refuse what nobody would heed, as far as the version tells: by a fixed parameter, or by who answers."""
    declared = find_declared(version, "negative_prompt")
    is_openai = version.engine_options.get("images", RemoteOptions().images) == "openai"
    if declared is not None and declared.fixed:
        is_heeded = asked.negative_prompt == declared.default
    else:
        is_heeded = not (isinstance(version.source, RemoteSource) and is_openai)
    if asked.negative_prompt and not is_heeded:
        raise InvalidInput.at("negative_prompt", "is nothing that this model follows")


def _sequence_length(version: Version, length: int | None) -> int | None:
    declared = find_declared(version, "max_sequence_length")
    if declared is not None and (length, declared.default) != (None, None):
        return whole(version, "max_sequence_length", length)
    if declared is None and length is not None:
        raise InvalidInput.at("settings.max_sequence_length", "is not a parameter of this version")
    return None


def _adapters(version: Version, given: ImageSettings) -> tuple[tuple[str, float], ...]:
    declared = {adapter.id: adapter.scale for adapter in version.adapters}
    if given.adapters is None:
        return tuple(declared.items())
    chosen: dict[str, float] = {}
    for at, adapter in enumerate(given.adapters):
        field = f"settings.adapters[{at}].id"
        if adapter.id not in declared:
            known = ", ".join(declared) or "none"
            raise InvalidInput.at(field, f"names {adapter.id!r}, which is no adapter of this version (it has: {known})")
        if adapter.id in chosen:
            raise InvalidInput.at(field, f"names {adapter.id!r} twice")
        chosen[adapter.id] = adapter.scale
    return tuple((name, chosen.get(name, 0.0)) for name in declared)
