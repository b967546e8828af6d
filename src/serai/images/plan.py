"""Who draws, and with which settings. Pure: it reads a snapshot, a version and what was asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from msgspec.structs import replace as with_fields

from serai.engines.tasks import Array, GenerateImage
from serai.errors import InvalidInput
from serai.images.model import MAX_SIDE, Format, ImageRequest, ImageSettings
from serai.registry.errors import CandidateInCooldown, NoCandidate
from serai.registry.failure import Situation
from serai.registry.parameters import STEPS, Parameter, resolve
from serai.registry.plan import Plan, Request
from serai.registry.policy import make_plan
from serai.registry.reference import AUTO, parse_reference
from serai.registry.snapshot import Candidate, RegistrySnapshot
from serai.registry.version import Version

GENERATION: Final = "image-generation"
EDIT: Final = "image-edit"

SIZE_STEP: Final = 8
"""Sides are multiples of it where a version says nothing else: by it the common autoencoders reduce pictures."""
PREVIEWS: Final = 5
"""How many previews of a picture are shown where nobody says."""
MAX_SCALE: Final = 4.0
"""Of an adapter, as requests may give it."""
QUALITY: Final = 90
_SIDES: Final = ("width", "height")

_DEFAULTS: Final[Mapping[str, Parameter]] = {
    "width": Parameter(default=512, min=SIZE_STEP, max=2048),
    "height": Parameter(default=512, min=SIZE_STEP, max=2048),
    "num_images": Parameter(default=1, min=1, max=8),
    "num_inference_steps": Parameter(default=20, min=1, max=200),
    "guidance_scale": Parameter(default=7.5, min=0, max=30),
    "strength": Parameter(default=0.8, min=0, max=1),
}
"""What holds where a version says nothing: those of the Stable Diffusion family."""


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
    """None where there is no picture to start from."""
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
    try:
        candidate = planned(snapshot, situation, asked).candidate
    except CandidateInCooldown:
        candidate = planned(snapshot, replace(situation, cooldowns={}), asked).candidate
    resolved(candidate.version, asked, seed=0)
    return candidate


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
    version: Version, asked: ImageRequest, *, seed: int, source_size: tuple[int, int] | None = None
) -> Resolved:
    """Return every setting of a request for one version: as asked, else as the version says, else as is usual.

    `seed`: where the request gives none. `source_size`: of the picture to start from; where the request
    gives no size, the result has its proportions. Raises InvalidInput that names field, bound and value.
    """
    try:
        return _resolved(version, asked, seed, source_size)
    except InvalidInput as error:
        error.hint = error.hint or f"GET /models/{version.model_id} shows what each of its versions takes."
        raise


def _resolved(version: Version, asked: ImageRequest, seed: int, source_size: tuple[int, int] | None) -> Resolved:
    given = asked.settings
    width, height = _size(version, given, source_size)
    steps = _whole(version, "num_inference_steps", given.num_inference_steps)
    strength = _strength(version, asked)
    return Resolved(
        width=width,
        height=height,
        images=_whole(version, "num_images", given.num_images),
        steps=steps,
        guidance_scale=_number(version, "guidance_scale", given.guidance_scale),
        seed=seed if given.seed is None else _whole(version, "seed", given.seed),
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
    """Choose among all models of the task; a picture goes to one that edits, else to one that can start from it."""
    if asked.image is not None:
        try:
            request = Request(task=EDIT, capabilities=_needs(EDIT, asked))
            return make_plan(snapshot, request, situation)
        except NoCandidate:
            pass
    return _explained(asked, snapshot, situation, Request(task=GENERATION, capabilities=_needs(GENERATION, asked)))


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


def _needs(task: str, asked: ImageRequest) -> frozenset[str]:
    """Return what a version must say that it can do; what edits need not say that it edits."""
    if asked.image is None:
        return frozenset()
    if asked.mask is not None:
        return frozenset({"inpaint"})
    return frozenset() if task == EDIT else frozenset({"image_to_image"})


# With which settings


def _declared(version: Version, name: str) -> Parameter | None:
    """Return what the version says of a setting, whichever of its names it uses."""
    names: Sequence[str] = STEPS if name in STEPS else (name,)
    return next((version.parameters[one] for one in names if one in version.parameters), None)


def _parameter(version: Version, name: str) -> Parameter:
    """Return the bounds and the default of a setting; a default that nobody gave lies within the bounds."""
    usual = _DEFAULTS.get(name, Parameter())
    declared = _declared(version, name)
    if declared is None:
        return usual
    if name in _SIDES:  # never unbounded: a picture is made in memory
        declared = with_fields(declared, max=MAX_SIDE if declared.max is None else min(declared.max, MAX_SIDE))
    if declared.default is not None or not isinstance(usual.default, int | float):
        return declared
    default = usual.default
    if declared.multiple_of is not None:
        default = max(1, round(default / declared.multiple_of)) * declared.multiple_of
    if declared.min is not None and default < declared.min:
        default = declared.min
    if declared.max is not None and default > declared.max:
        default = declared.max
    return with_fields(declared, default=default)


def _checked(name: str, parameter: Parameter, value: float | None) -> Any:
    """Return the value, or else the default. Raises InvalidInput that names the setting."""
    field = f"settings.{name}"
    return resolve({field: parameter}, {field: value})[field]


def _whole(version: Version, name: str, value: int | None) -> int:
    parameter = _parameter(version, name)
    if isinstance(parameter.default, float) and parameter.default.is_integer():
        parameter = with_fields(parameter, default=int(parameter.default))
    found = _checked(name, parameter, value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise InvalidInput.at(f"settings.{name}", f"must be a whole number, not {found!r}")
    return found


def _number(version: Version, name: str, value: float | None) -> float:
    parameter = _parameter(version, name)
    if isinstance(parameter.default, int) and not isinstance(parameter.default, bool):
        parameter = with_fields(parameter, default=float(parameter.default))
    found = _checked(name, parameter, None if value is None else float(value))
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InvalidInput.at(f"settings.{name}", f"must be a number, not {found!r}")
    return float(found)


def _size(version: Version, given: ImageSettings, source_size: tuple[int, int] | None) -> tuple[int, int]:
    sides = (_whole(version, "width", given.width), _whole(version, "height", given.height))
    if source_size is not None and given.width is None and given.height is None:
        longest = max(sides) / max(source_size)
        names = ("width", "height")
        sides = (
            _nearest(_parameter(version, names[0]), source_size[0] * longest),
            _nearest(_parameter(version, names[1]), source_size[1] * longest),
        )
    for name, side in zip(("width", "height"), sides, strict=True):
        step = _step(_parameter(version, name))
        if side <= 0 or side % step:
            raise InvalidInput.at(f"settings.{name}", f"must be a multiple of {step}, not {side}")
    return sides


def _step(parameter: Parameter) -> int:
    """Return what a side is a multiple of."""
    return parameter.multiple_of or SIZE_STEP


def _nearest(parameter: Parameter, side: float) -> int:
    """Return the side that a version takes, within its bounds, which is nearest to another."""
    if parameter.fixed and isinstance(parameter.default, int):
        return parameter.default
    step = _step(parameter)
    lowest = -(-int(parameter.min or step) // step)
    highest = int(parameter.max or side + step) // step
    return max(1, lowest, min(round(side / step), highest)) * step


def _strength(version: Version, asked: ImageRequest) -> float | None:
    strength = asked.settings.strength
    if asked.image is not None:
        return _number(version, "strength", strength)
    if strength is not None:
        raise InvalidInput.at("settings.strength", "needs an image to start from")
    return None


def _sequence_length(version: Version, length: int | None) -> int | None:
    declared = _declared(version, "max_sequence_length")
    if declared is not None and (length, declared.default) != (None, None):
        return _whole(version, "max_sequence_length", length)
    if declared is None and length is not None:
        raise InvalidInput.at("settings.max_sequence_length", "is not a parameter of this version")
    return None


def _adapters(version: Version, given: ImageSettings) -> tuple[tuple[str, float], ...]:
    declared = {adapter.id: adapter.scale for adapter in version.adapters}
    if given.adapters is None:
        return tuple(declared.items())
    chosen: dict[str, float] = {}
    for number, adapter in enumerate(given.adapters):
        field = f"settings.adapters[{number}].id"
        if adapter.id not in declared:
            known = ", ".join(declared) or "none"
            raise InvalidInput.at(field, f"names {adapter.id!r}, which is no adapter of this version (it has: {known})")
        if adapter.id in chosen:
            raise InvalidInput.at(field, f"names {adapter.id!r} twice")
        chosen[adapter.id] = adapter.scale
    return tuple((name, chosen.get(name, 0.0)) for name in declared)
