"""Which engines may run a version on this machine, in which order, and why. Pure.

vLLM where there is CUDA; OpenVINO GenAI on CPUs; transformers as the fallback everywhere; another server
where the version names one. An engine that is not installed is passed over, and said with its remedy.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from serai.engines.base import EngineInfo
from serai.engines.catalogue import CATALOGUE, engine_named
from serai.engines.errors import EngineMissing
from serai.registry.source import PackageSource, RemoteSource, Source

_ORDER = (
    ("vllm", "cuda", "it is the fastest on CUDA"),
    ("transformers", "cuda", "it runs every checkpoint on CUDA"),
    ("transformers-embed", "cuda", "it runs every embedding model on CUDA"),
    ("diffusers", "cuda", "it runs every image pipeline on CUDA"),
    ("openvino-genai", "cpu", "it is the fastest on a CPU"),
    ("openvino-embed", "cpu", "it runs embedding models on a CPU"),
    ("openvino", "cpu", "it runs networks on a CPU"),
    ("openvino-image", "cpu", "it runs image pipelines on a CPU"),
    ("transformers", "cpu", "it runs every checkpoint anywhere"),
    ("transformers-embed", "cpu", "it runs every embedding model anywhere"),
    ("diffusers", "cpu", "it runs every image pipeline anywhere"),
    ("remote", "remote", "another server runs the model"),
    ("http", "remote", "another server runs the model"),
)
"""What is tried first. `fake` is used only where a version names it."""

_SUFFIXES = {".xml": "ir", ".onnx": "onnx", ".tflite": "tflite", ".gguf": "gguf", ".safetensors": "safetensors"}

_PICTURES = frozenset({"generate_image"})
_TASKS = {
    "chat": frozenset({"chat", "generate"}),
    "embedding": frozenset({"embed"}),
    "image-generation": _PICTURES,
    "image-edit": _PICTURES,
}
_OTHER_TASKS = frozenset({"infer", "fetch"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An engine on a kind of device; `why` completes 'this engine, because …'."""

    engine: EngineInfo
    device_kind: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """An engine that does not come into question; `why` completes 'not this engine: …'."""

    engine: str
    why: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The engines to try, best first, and those that were left out."""

    order: tuple[Choice, ...]
    passed_over: tuple[PassedOver, ...] = ()

    @property
    def explanation(self) -> str:
        """Plain sentences for a decision."""
        sentences = [f"{one.engine.name} on {one.device_kind}: {one.why}." for one in self.order[:1]]
        sentences += [f"If it fails: {one.engine.name} on {one.device_kind}." for one in self.order[1:]]
        sentences += [f"Not {one.engine}: {one.why}." for one in self.passed_over]
        return " ".join(sentences)

    def first(self) -> Choice:
        """Return the best. Raises EngineMissing, whose hint is what would help."""
        if self.order:
            return self.order[0]
        reasons = "; ".join(f"{one.engine}: {one.why}" for one in self.passed_over) or "none reads its weights"
        remedies = dict.fromkeys(one.remedy for one in self.passed_over if one.remedy)
        hint = " or ".join(remedies) or "GET /status lists the engines and what each of them needs."
        raise EngineMissing(f"No engine here can run this version ({reasons}).", hint=hint)


def tasks_for(model_task: str) -> frozenset[str]:
    """Return the tags of the tasks, any of which serves models of this task."""
    return _TASKS.get(model_task, _OTHER_TASKS)


def formats_of(source: Source | None, paths: Iterable[str]) -> frozenset[str]:
    """Return the forms in which the weights are there, by the names of their files; 'none' where none are needed."""
    formats = frozenset(form for path in paths if (form := _SUFFIXES.get(PurePosixPath(path).suffix.lower())))
    if not formats and (source is None or isinstance(source, RemoteSource | PackageSource)):
        return frozenset({"none"})
    return formats


def choose(
    *,
    engine: str | None,
    tasks: frozenset[str],
    formats: frozenset[str],
    device_kinds: Collection[str],
    missing: Mapping[str, tuple[str, ...]],
    needs: frozenset[str] = frozenset(),
    is_remote: bool = False,
) -> Choices:
    """Return the engines that may run a version.

    `engine`: the one that the version names, and then no other. `tasks`: any of them will do. `needs`:
    capabilities that the call cannot do without. `missing`: packages that are not installed, by engine.
    Raises EngineUnknown.
    """
    device_kinds = frozenset(device_kinds) | {"remote"}
    order: list[Choice] = []
    passed_over: dict[str, PassedOver] = {}
    for info, device_kind, why in _candidates(engine, is_remote=is_remote):
        obstacle = _obstacle(info, device_kind, tasks=tasks, formats=formats, device_kinds=device_kinds, needs=needs)
        if obstacle is None and missing.get(info.name):
            lacking = ", ".join(missing[info.name])
            obstacle = PassedOver(engine=info.name, why=f"{lacking} not installed", remedy=info.remedy)
        if obstacle is None:
            order.append(Choice(engine=info, device_kind=device_kind, why=why))
        else:
            known = passed_over.get(info.name)
            if known is None or (obstacle.remedy and not known.remedy):  # of several devices: what can be helped
                passed_over[info.name] = obstacle
    taken = {one.engine.name for one in order}
    return Choices(
        order=tuple(order), passed_over=tuple(one for one in passed_over.values() if one.engine not in taken)
    )


def _candidates(engine: str | None, *, is_remote: bool) -> list[tuple[EngineInfo, str, str]]:
    if engine is not None:
        info = engine_named(engine)
        return [(info, kind, "the version names it") for kind in info.device_kinds]
    return [(CATALOGUE[name], kind, why) for name, kind, why in _ORDER if (kind == "remote") == is_remote]


def _obstacle(
    info: EngineInfo,
    device_kind: str,
    *,
    tasks: frozenset[str],
    formats: frozenset[str],
    device_kinds: Collection[str],
    needs: frozenset[str],
) -> PassedOver | None:
    why = ""
    if not info.tasks & tasks:
        why = f"it does not do {' or '.join(sorted(tasks))}"
    elif not info.formats & formats and "none" not in info.formats:
        why = f"it reads {', '.join(sorted(info.formats))}, and the weights are {_listed(formats)}"
    elif device_kind not in device_kinds:
        why = f"there is no {device_kind} device"
    elif needs - info.capabilities:
        why = f"it cannot do {', '.join(sorted(needs - info.capabilities))}"
    return PassedOver(engine=info.name, why=why) if why else None


def _listed(formats: frozenset[str]) -> str:
    return ", ".join(sorted(formats)) or "in no known form"
