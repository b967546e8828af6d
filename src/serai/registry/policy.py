"""Who answers: the explicit choice, the binding or the split, or the automatic choice; then the chain.

Pure: it reads a snapshot, a request and the situation, and answers with a plan or an error.

    a service         explicit choice → 'auto', require_fast or require_high_quality → binding or split
    a model           that version (user_choice), or the newest active one (default); no fallback
    a task alone      the automatic choice

On a service every order ends with the service's own targets and fallback chain, each candidate once.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from serai.errors import InvalidInput, NotFound
from serai.registry.decision import Decision, Reason
from serai.registry.errors import AliasNotFound, CandidateInCooldown, VersionNotFound
from serai.registry.failure import QUIET, Situation
from serai.registry.model import Model
from serai.registry.plan import Plan, Request, Step, start
from serai.registry.reference import AUTO, Reference, parse_reference
from serai.registry.service import Service, Target
from serai.registry.snapshot import FAST_STEPS, QUALITY_STEPS, Candidate, RegistrySnapshot, Trait, refusal

MAX_AUTOMATIC = 5
"""How many candidates of the automatic choice are put in the order before a service's own chain."""

COMPLEX = 0.7
SIMPLE = 0.3


def decide(snapshot: RegistrySnapshot, request: Request, situation: Situation = QUIET) -> Decision:
    """Return who would answer and why, without running anything. Raises what `make_plan` raises."""
    return make_plan(snapshot, request, situation).decision


def make_plan(snapshot: RegistrySnapshot, request: Request, situation: Situation = QUIET) -> Plan:
    """Return the order of candidates, at the first that may answer.

    Raises ServiceNotFound, ModelNotFound, ModelNotPulled, VersionNotFound, AliasNotFound,
    InvalidReference, InvalidVersionFormat, InvalidInput (a model of another task), LicenceRefused,
    CandidateInCooldown or NoCandidate.
    """
    choice = _choice(request)
    service_id = request.service
    if service_id is None and choice is not None and choice.name in snapshot.services:
        _refuse_selector(choice)
        service_id, choice = choice.name, None
    if service_id is not None:
        return _on_service(snapshot, snapshot.service(service_id), request, choice, situation)
    if choice is not None:
        return _on_model(snapshot, request, choice, situation)
    if request.task is None:
        raise InvalidInput.at("model", "is missing: name a service or a model")
    steps, policy = _automatic(snapshot, request.task, request)
    return start(
        Plan(
            request=request,
            situation=situation,
            service=None,
            reason=Reason.AUTO_POLICY,
            policy=policy,
            steps=tuple(steps),
        )
    )


def split_position(service_id: str, client_key: str) -> float:
    """Return where a client stands in [0, 100): the first 64 bits of SHA-256, as a share of 100.

    It depends on nothing but the two names, so a client stays where it is while weights stay, and
    only the clients between the old bound and the new one move when a weight changes.
    """
    digest = hashlib.sha256(f"{service_id}\0{client_key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * 100


def choose_target(service: Service, client_key: str) -> Target | None:
    """Return the target that answers a client; None where the service has none.

    Without a key the heaviest target answers.
    """
    targets = service.revision.targets
    if len(targets) < 2 or not client_key:
        return service.binding
    position = split_position(service.id, client_key)
    for target in targets:
        if position < target.weight:
            return target
        position -= target.weight
    return service.binding


def own_steps(snapshot: RegistrySnapshot, service: Service, client_key: str = "") -> list[Step]:
    """Return a service's own order: its target, the other targets by weight, its fallback chain.

    A link that names a service stands for that service's own order, and its condition for each of
    it; one that would come back to a service on the way (refused when written, see `checks`) is
    left out.
    """
    return list(_flatten(snapshot, service, client_key, frozenset()))


def _choice(request: Request) -> Reference | None:
    """Return the explicit choice; None for none or 'auto'."""
    if request.model is None or request.model == AUTO:
        return None
    return parse_reference(request.model)


def _refuse_selector(reference: Reference) -> None:
    """Refuse a version asked of a service: what it answers with is its own affair."""
    if reference.is_default:
        return
    raise (VersionNotFound if reference.version else AliasNotFound)(
        f"{reference.name!r} is a service and has no versions to choose from.",
        hint='Send the service and the model apart: {"service": …, "model": "name@version"}.',
    )


def _on_model(snapshot: RegistrySnapshot, request: Request, choice: Reference, situation: Situation) -> Plan:
    entry = snapshot.find_model(choice.name)
    if entry is not None:  # the wrong task is said before what the model lacks: pulling it would not help
        _check_task(entry.model, request.task, choice)
    candidate = snapshot.resolve(choice)
    error = refusal(candidate)
    if error is not None:
        raise error
    seconds = situation.blocked_for(candidate.key)
    if seconds > 0:
        raise CandidateInCooldown(
            f"{candidate.name} failed a short while ago and is left alone for {math.ceil(seconds)} s more.",
            retry_after=seconds,
        )
    step = Step(reference=str(choice), origin="the model that the caller named", candidate=candidate)
    plan = Plan(
        request=request,
        situation=situation,
        service=None,
        reason=Reason.DEFAULT if choice.is_default else Reason.USER_CHOICE,
        steps=(step,),
    )
    return start(plan)


def _check_task(model: Model, task: str | None, choice: Reference) -> None:
    if task is not None and model.task != task:
        raise InvalidInput.at(
            "model",
            f"names {choice.name!r}, which does {model.task}, not {task}",
            hint=f"GET /models?task={task} lists the models that do.",
        )


def _on_service(
    snapshot: RegistrySnapshot, service: Service, request: Request, choice: Reference | None, situation: Situation
) -> Plan:
    if request.task is not None and service.task != request.task:
        raise InvalidInput.at("service", f"{service.id!r} does {service.task}, not {request.task}")
    opening = _opening(snapshot, service, request, choice)
    own = own_steps(snapshot, service, request.client_key)
    return start(
        Plan(
            request=request,
            situation=situation,
            service=service.id,
            reason=opening.reason,
            policy=opening.policy,
            steps=tuple(_each_once((*opening.steps, *own))),
            warnings=opening.warnings,
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opening:
    """What comes before a service's own order, and the reason that goes with it."""

    reason: Reason
    steps: tuple[Step, ...] = ()
    policy: str = ""
    warnings: tuple[str, ...] = ()


def _opening(snapshot: RegistrySnapshot, service: Service, request: Request, choice: Reference | None) -> _Opening:
    warnings: tuple[str, ...] = ()
    if choice is not None and not (choice.name == service.id and choice.is_default):
        chosen, problem = _chosen(snapshot, service, choice)
        if chosen is not None:
            step = Step(reference=str(choice), origin="the explicit choice", candidate=chosen)
            return _Opening(reason=Reason.USER_CHOICE, steps=(step,))
        warnings = (f"The explicit choice {str(choice)!r} was not used: {problem}. The policy chose instead.",)
    targets = service.revision.targets
    asked = request.model == AUTO or request.require_fast or request.require_high_quality
    if not (warnings or asked) and targets:
        return _Opening(reason=Reason.SPLIT if len(targets) > 1 else Reason.BOUND)
    steps, policy = _automatic(snapshot, service.task, request)
    return _Opening(reason=Reason.AUTO_POLICY, steps=tuple(steps), policy=policy, warnings=warnings)


def _chosen(snapshot: RegistrySnapshot, service: Service, choice: Reference) -> tuple[Candidate | None, str]:
    """Return the candidate of an explicit choice on a service, or None and why it cannot be used."""
    try:
        candidate = snapshot.resolve(choice)
    except NotFound as error:
        return None, error.message.rstrip(".")
    if candidate.model.task != service.task:
        return None, f"it does {candidate.model.task}, not {service.task}"
    if candidate.obstacle is not None:
        return None, candidate.obstacle.why
    return candidate, ""


def _automatic(snapshot: RegistrySnapshot, task: str, request: Request) -> tuple[list[Step], str]:
    """Return the best candidates of a task for a request, best first, and the policy in a sentence.

    What was asked for and cannot be had is given up, and said: something that answers beats nothing.
    """
    everything = snapshot.tasks.get((task, "any"), ())
    trait, wish = _wish(request)
    found = _fitting(snapshot.tasks.get((task, trait), ()), request)
    looked = f"The policy looked at {len(everything)} active candidates for {task}"
    told = f"{looked}{wish and f' for {wish}'} and took the highest priority."
    if not found and trait == "fast+quality":
        found = _fitting(snapshot.tasks.get((task, "fast"), ()), request)
        told = f"{looked}; none is both fast and of high quality, so it took a fast one."
    if not found and trait != "any":
        found = _fitting(everything, request)
        told = f"{looked} for {wish}; none has that, so it took the highest priority."
    if request.marketplace is not None:
        told += f" Only models for {request.marketplace} or for every marketplace count."
    steps = [Step(reference=one.name, origin="a choice of the policy", candidate=one) for one in found]
    return steps, told


def _wish(request: Request) -> tuple[Trait, str]:
    """Return the trait that a request asks of a candidate, and the same in words."""
    fast = f"low or medium memory and at most {FAST_STEPS} steps"
    quality = f"a tag high-quality or enhanced, or at least {QUALITY_STEPS} steps"
    if request.require_fast and request.require_high_quality:
        return "fast+quality", f"{fast}, with {quality}"
    if request.require_fast:
        return "fast", fast
    if request.require_high_quality:
        return "quality", quality
    complexity = request.complexity
    if complexity is not None and complexity > COMPLEX:
        return "enhanced", f"the tag enhanced, the picture's complexity being {complexity:.2f}"
    if complexity is not None and complexity < SIMPLE:
        return "low_memory", f"low memory, the picture's complexity being {complexity:.2f}"
    return "any", ""


def _fitting(candidates: Iterable[Candidate], request: Request) -> list[Candidate]:
    return list(islice((one for one in candidates if _fits(one, request)), MAX_AUTOMATIC))


def _fits(candidate: Candidate, request: Request) -> bool:
    markets = candidate.model.marketplaces
    if request.marketplace is not None and markets and request.marketplace not in markets:
        return False
    return request.capabilities <= set(candidate.version.capabilities)


def _flatten(snapshot: RegistrySnapshot, service: Service, client_key: str, passed: frozenset[str]) -> Iterator[Step]:
    passed |= {service.id}
    chosen = choose_target(service, client_key)
    others = sorted((one for one in service.revision.targets if one is not chosen), key=lambda one: -one.weight)
    shares = "a share of the split of" if others else "the binding of"
    for target in (chosen, *others) if chosen is not None else ():
        yield Step(reference=target.reference, origin=f"{shares} {service.id}", candidate=snapshot.meant_by(target))
    for entry in service.revision.fallback:
        conditions = () if entry.condition is None else (entry.condition,)
        if entry.service is None:
            yield Step(
                reference=entry.reference,
                origin=f"in the fallback chain of {service.id}",
                candidate=snapshot.meant_by(entry),
                conditions=conditions,
            )
        elif entry.service in snapshot.services and entry.service not in passed:
            for step in _flatten(snapshot, snapshot.services[entry.service], client_key, passed):
                yield replace(step, conditions=(*conditions, *step.conditions)) if conditions else step


def _each_once(steps: Iterable[Step]) -> Iterator[Step]:
    """Leave out what stands earlier without a condition: there it is met first in any case."""
    certain: set[str] = set()
    for step in steps:
        if step.name in certain:
            continue
        if not step.conditions:
            certain.add(step.name)
        yield step
