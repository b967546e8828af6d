"""The wire types of models, versions and services. camelCase is accepted where a name has two words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AliasChoices, AliasGenerator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from serai.api.values import AS_JSON
from serai.api.wire import Moment, Page, Wire, token_of
from serai.registry.checks import Use
from serai.registry.decision import Decision
from serai.registry.diff import VersionDiff
from serai.registry.model import Alias, AliasEvent, Model
from serai.registry.parameters import Parameter
from serai.registry.service import Binding, FallbackEntry, Limits, Revision, Service, Target
from serai.registry.snapshot import ModelEntry, RegistrySnapshot
from serai.registry.source import Adapter, Availability, Benchmark, File, Footprint, Source
from serai.registry.version import MemoryClass, Status, Version

Row = TypeVar("Row")
Item = TypeVar("Item")

Id = Annotated[str, Field(min_length=1, max_length=128)]
Number = Annotated[str, Field(max_length=100, description="A semantic version, for example 1.2.0.")]
Text = Annotated[str, Field(max_length=100_000)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[list[Word], Field(max_length=100)]
Sentences = Annotated[list[Annotated[str, Field(min_length=1, max_length=2000)]], Field(max_length=100)]
Remark = Annotated[str, Field(max_length=2000)]
Document = dict[str, Any]
Benchmarks = Annotated[tuple[Benchmark, ...], AS_JSON]


class RegistryIn(Wire):
    """A body of the registry: snake_case, or camelCase as in the service that this one replaces."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(name, to_camel(name)))
    )


class CardFields(RegistryIn):
    """What is said of a model. Members that are left out stay as they are, or empty."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    description: Text | None = None
    publisher: Annotated[str, Field(max_length=200)] | None = None
    licence: Annotated[str, Field(max_length=200)] | None = Field(None, description="SPDX id or name.")
    reference_url: Annotated[str, Field(max_length=2000, pattern=r"^https?://")] | None = None
    lookup_names: Words | None = Field(None, description="Further names, such as a hub's owner/name.")
    languages: Words | None = None
    domain: Annotated[str, Field(max_length=200)] | None = None
    tags: Words | None = None
    pros: Sentences | None = None
    cons: Sentences | None = None
    benchmarks: Benchmarks | None = None
    inference_schema: Document | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    marketplaces: Words | None = None
    active: bool | None = None


class VersionFields(RegistryIn):
    """What a version is and what is said of it."""

    release_notes: Text | None = None
    source: Annotated[Source, AS_JSON] | None = None
    engine: Annotated[str, Field(max_length=64)] | None = None
    engine_options: Document | None = None
    quantization: Annotated[str, Field(max_length=64)] | None = None
    adapters: Annotated[tuple[Adapter, ...], AS_JSON] | None = None
    parameters: Annotated[dict[str, Parameter], AS_JSON] | None = None
    files: Annotated[tuple[File, ...], AS_JSON] | None = None
    footprint: Annotated[tuple[Footprint, ...], AS_JSON] | None = None
    memory_class: MemoryClass | None = None
    capabilities: Words | None = None
    input_schema: Document | None = None
    output_schema: Document | None = None
    commercial_use: bool | None = None
    duties: Sentences | None = None
    allow_remote_code: bool | None = None
    allow_pickle: bool | None = None


class ModelIn(CardFields, VersionFields):
    """A card with its first version."""

    id: Id = Field(validation_alias=AliasChoices("id", "model_id", "modelId"))
    task: Word
    version: Number
    version_status: Literal["draft", "active"] | None = None


class ModelChange(CardFields, VersionFields):
    """Changes of the card and, with `version`, of that version."""

    version: Number | None = None


class VersionIn(VersionFields):
    """A new version; what is left out is taken over from the one it is based on."""

    version: Number
    based_on: Number | None = Field(None, description="The version to take over from; the newest if left out.")
    status: Literal["draft", "active"] | None = Field(
        None, validation_alias=AliasChoices("status", "version_status", "versionStatus")
    )
    tags: Words | None = None
    licence: Annotated[str, Field(max_length=200)] | None = None
    benchmarks: Benchmarks | None = None


class VersionChange(VersionFields):
    tags: Words | None = None
    licence: Annotated[str, Field(max_length=200)] | None = None
    benchmarks: Benchmarks | None = None


class DeprecateIn(RegistryIn):
    reason: Remark = ""
    sunset_at: Moment | None = Field(None, strict=False, description="From when it may stop answering.")


class AliasIn(RegistryIn):
    """With `expected_from` (null: the alias must not exist) the move happens only from there: compare and swap."""

    to: Number
    expected_from: Number | None = None
    reason: Remark = ""


class ServiceFields(RegistryIn):
    """A service. Members that are left out stay as they are, or empty.

    Without `model_id` a version or an alias is one of the model that the service is bound to; a null
    `model_id` leaves the choice to the policy.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    description: Text | None = None
    required: Words | None = Field(None, description="Capabilities that each candidate must have.")
    hardware: Text | None = None
    benchmarks: Benchmarks | None = None
    pinned: bool | None = None
    model_id: Annotated[str, Field(max_length=300)] | None = None
    model_version: Number | None = None
    alias: Annotated[str, Field(max_length=128)] | None = None
    split: Annotated[tuple[Target, ...], AS_JSON] | None = Field(
        None, description="Targets with weights that sum to 100, instead of model_id."
    )
    shadow: Annotated[Target, AS_JSON] | None = None
    fallback: Annotated[tuple[FallbackEntry, ...], AS_JSON] | None = None
    limits: Annotated[Limits, AS_JSON] | None = None
    config: Document | None = None


class ServiceIn(ServiceFields):
    id: Id = Field(validation_alias=AliasChoices("id", "service_id", "serviceId"))
    task: Word
    published: bool = False


class ServiceChange(ServiceFields):
    reason: Remark = ""


class SwitchIn(RegistryIn):
    """Another version of the model that the service is bound to, by number or by alias."""

    model_id: Annotated[str, Field(max_length=300)] | None = None
    version: Number | None = Field(None, validation_alias=AliasChoices("version", "model_version", "modelVersion"))
    alias: Annotated[str, Field(max_length=128)] | None = None
    reason: Remark = ""
    preload: bool | None = Field(
        default=None,
        description="Load it before traffic goes there, and change nothing if that fails; left out: if what answers "
        "now is loaded.",
    )


class RollbackIn(RegistryIn):
    to: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="A revision; the one before if left out."
    )
    reason: Remark = ""
    preload: bool | None = Field(
        default=None,
        description="Load it before traffic goes there, and change nothing if that fails; left out: if what answers "
        "now is loaded.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionBrief:
    version: str
    status: Status
    published: bool
    immutable: bool
    availability: Availability


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView(Model):
    """A card with its versions, the newest first."""

    default_version: str | None
    versions: tuple[VersionBrief, ...]
    aliases: Mapping[str, str]
    version: Version | None = None
    """The one that was asked for with ?version=."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView(Version):
    weights: Availability
    """What is missing before it could be loaded, if anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView(Service):
    """A service; the first three are its binding, the target with the most traffic."""

    model_id: str | None
    model_version: str | None
    alias: str | None
    available_versions: tuple[VersionBrief, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactView:
    """Who is touched when a version goes."""

    services: tuple[str, ...]
    uses: tuple[Use, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeprecatedUse:
    version: str
    uses: tuple[Use, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHistory:
    """With which versions the service answered, and its revisions; the latest first."""

    answered: tuple[Binding, ...]
    revisions: tuple[Revision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasHistory:
    version: str | None
    events: tuple[AliasEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Decision):
    """A decision that was not carried out, and the whole order behind it."""

    candidates: tuple[str, ...]


ModelOut = Annotated[ModelView, AS_JSON]
VersionOut = Annotated[VersionView, AS_JSON]
AliasOut = Annotated[Alias, AS_JSON]
AliasHistoryOut = Annotated[AliasHistory, AS_JSON]
ServiceOut = Annotated[ServiceView, AS_JSON]
HistoryOut = Annotated[ServiceHistory, AS_JSON]
ImpactOut = Annotated[ImpactView, AS_JSON]
DeprecatedUses = Annotated[tuple[DeprecatedUse, ...], AS_JSON]
DiffOut = Annotated[VersionDiff, AS_JSON]
ExplanationOut = Annotated[Explanation, AS_JSON]


def show_model(entry: ModelEntry, *, include_deprecated: bool, selected: Version | None = None) -> ModelView:
    """Return the view of a model; without `include_deprecated` its old versions are left out."""
    hidden = () if include_deprecated else (Status.DEPRECATED, Status.RETIRED)
    shown = (one.version for one in entry.candidates.values() if one.version.status not in hidden)
    return ModelView(
        **members(entry.model),
        default_version=entry.default.version.version if entry.default else None,
        versions=tuple(brief(version) for version in shown),
        aliases=dict(entry.aliases),
        version=selected,
    )


def show_version(version: Version) -> VersionView:
    """Return the view of a version."""
    return VersionView(**members(version), weights=version.availability)


def show_service(snapshot: RegistrySnapshot, service: Service, warnings: tuple[str, ...] = ()) -> ServiceView:
    """Return the view of a service, with the versions to which it could be switched."""
    bound = service.binding
    entry = snapshot.models.get(bound.model) if bound else None
    available = [] if entry is None else [one.version for one in entry.candidates.values()]
    meant = snapshot.meant_by(bound) if bound else None
    return ServiceView(
        **members(service),
        model_id=bound.model if bound else None,
        model_version=meant.version.version if meant else None,
        alias=bound.alias if bound else None,
        available_versions=tuple(brief(version) for version in available if version.status is not Status.RETIRED),
        warnings=warnings,
    )


def page_of_ids(ids: Sequence[str], limit: int, known: Mapping[str, Row], show: Callable[[Row], Item]) -> Page[Item]:
    """Return the page of `ids`, of which one more than `limit` was asked for.

    One that was deleted since it was found is left out, and the next page begins where it would have.
    """
    cursor = token_of(ids[limit - 1]) if len(ids) > limit else None
    return Page(items=[show(known[id_]) for id_ in ids[:limit] if id_ in known], next_cursor=cursor)


def brief(version: Version) -> VersionBrief:
    """Return one line about a version."""
    return VersionBrief(
        version=version.version,
        status=version.status,
        published=version.is_published,
        immutable=version.immutable,
        availability=version.availability,
    )


def members(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, for a view that has them too."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
