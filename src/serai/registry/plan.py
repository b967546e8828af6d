"""The order in which candidates are tried for one request, where it stands, and how it is told.

A plan is made by `policy.make_plan`. Whoever runs it calls `next_candidate` when the current one
fails, and `finish` or `give_up` at the end; each answers with a new value.
"""

import math
from dataclasses import dataclass, replace

from serai.errors import SeraiError
from serai.registry.decision import ChainLink, Decision, Outcome, Reason
from serai.registry.errors import CandidateInCooldown, NoCandidate
from serai.registry.failure import Failure, Situation
from serai.registry.service import Condition
from serai.registry.snapshot import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller asks for. `model` is the explicit choice: a reference, or 'auto'.

    `complexity` is that of the picture, 0 to 1. `client_key` keeps a client on one side of a traffic
    split; without one the heaviest target answers.
    """

    service: str | None = None
    model: str | None = None
    task: str | None = None
    marketplace: str | None = None
    require_fast: bool = False
    require_high_quality: bool = False
    complexity: float | None = None
    capabilities: frozenset[str] = frozenset()
    client_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One place in the order. `candidate` is None where a link means no version any more."""

    reference: str
    origin: str
    """How it came to stand here, to be read after 'it is': 'the binding of chat'."""
    candidate: Candidate | None
    conditions: tuple[Condition, ...] = ()
    """All of them must hold."""

    @property
    def name(self) -> str:
        return self.candidate.name if self.candidate is not None else self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`steps[position]` is the candidate to run now; `links` is what became of those before it."""

    request: Request
    situation: Situation
    service: str | None
    reason: Reason
    """Why the first step is the first."""
    policy: str = ""
    """What the automatic choice looked for, as a sentence; empty where it did not choose."""
    steps: tuple[Step, ...]
    position: int = 0
    links: tuple[ChainLink, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def candidate(self) -> Candidate:
        candidate = self.steps[self.position].candidate
        assert candidate is not None, "a plan stops only at a step with a candidate"
        return candidate

    @property
    def current_reason(self) -> Reason:
        """The reason that is true of the current candidate."""
        if self.position == 0:
            return self.reason
        failed = any(link.outcome is Outcome.FAILED for link in self.links)
        return Reason.FALLBACK_ERROR if failed else Reason.FALLBACK_UNAVAILABLE

    @property
    def decision(self) -> Decision:
        """The decision as it stands: the current candidate is selected and has not answered."""
        return _decision(self, Outcome.SELECTED, None, 0.0)


def start(plan: Plan) -> Plan:
    """Return `plan` at the first step that may answer.

    A candidate whose weights are not here is taken only if no other may answer. Raises NoCandidate,
    or CandidateInCooldown if waiting would help, with every candidate and why it was passed over.
    """
    found = _walk(plan, 0, (), None, accept_missing=False) or _walk(plan, 0, (), None, accept_missing=True)
    if found is None:
        raise _nobody(plan)
    return found


def next_candidate(
    plan: Plan,
    failure: Failure,
    *,
    error: str = "",
    ms: float = 0.0,
    output_started: bool = False,
    situation: Situation | None = None,
) -> Plan | None:
    """Return the plan at the next candidate, or None where there must be or is no other.

    Never after the first output, never for a client's own error or a cancellation. `error` is a
    sentence for the record, `ms` how long the failed one took, `situation` how things are by now.
    """
    if output_started or failure.is_final:
        return None
    now = plan if situation is None else replace(plan, situation=situation)
    links = (*plan.links, _link(plan, _failed_outcome(failure), error or failure.value, ms))
    after = plan.position + 1
    return _walk(now, after, links, failure, accept_missing=False) or _walk(
        now, after, links, failure, accept_missing=True
    )


def finish(plan: Plan, ms: float) -> Decision:
    """Return the decision of a candidate that has answered in `ms`."""
    return _decision(plan, Outcome.SERVED, None, ms)


def give_up(plan: Plan, failure: Failure, *, error: str = "", ms: float = 0.0) -> Decision:
    """Return the decision of a plan whose current candidate failed and that goes no further."""
    return _decision(plan, _failed_outcome(failure), error or failure.value, ms)


def explain(plan: Plan, outcome: Outcome = Outcome.SELECTED, error: str | None = None) -> str:
    """Return plain sentences: who answers and why, and each other candidate and why not.

    `outcome`: how it went with the current candidate; `error` why not well.
    """
    step = plan.steps[plan.position]
    sentences = [_headline(plan, step, outcome)]
    if plan.policy and (plan.position == 0 or plan.reason is Reason.AUTO_POLICY):
        sentences.append(plan.policy)
    sentences += [_told(link) for link in plan.links]
    waiting = [other.name for other in plan.steps[plan.position + 1 :]]
    if error is not None:
        sentences.append(f"It failed: {error}.")
    elif waiting and outcome is Outcome.SELECTED:
        sentences.append(f"If it fails, next in order: {', '.join(waiting)}.")
    return " ".join(sentences)


_HEADLINES = {
    Reason.USER_CHOICE: "the caller chose it",
    Reason.DEFAULT: "it is the newest active version of the model that the caller named",
    Reason.AUTO_POLICY: "the policy chose it",
    Reason.FALLBACK_ERROR: "a candidate before it failed",
    Reason.FALLBACK_UNAVAILABLE: "the candidates before it could not be tried",
}


def _headline(plan: Plan, step: Step, outcome: Outcome) -> str:
    because = _HEADLINES.get(plan.current_reason, f"it is {step.origin}")
    verb = "answers" if outcome in (Outcome.SELECTED, Outcome.SERVED) else "was to answer"
    return f"{step.name} {verb}: {because}" + (f"; it is {step.origin}." if plan.position else ".")


def _told(link: ChainLink) -> str:
    name = f"{link.model}@{link.version}" if link.version else link.model
    verb = "was passed over" if link.outcome is Outcome.SKIPPED else "failed"
    return f"{name} {verb}: {link.error}."


def _walk(
    plan: Plan, first: int, links: tuple[ChainLink, ...], cause: Failure | None, *, accept_missing: bool
) -> Plan | None:
    """Return the plan at the first step from `first` on that may answer, the others told as skipped."""
    tried = {(link.model, link.version) for link in links if link.outcome is Outcome.FAILED}
    for position in range(first, len(plan.steps)):
        step = plan.steps[position]
        if step.candidate is not None and step.candidate.key in tried:
            continue
        found = _obstacle(plan, step, cause, accept_missing=accept_missing)
        if found is None:
            return replace(plan, position=position, links=links)
        why, failure = found
        model, _, version = step.name.partition("@")
        links = (*links, ChainLink(model=model, version=version, outcome=Outcome.SKIPPED, error=why))
        cause = failure or cause
    return None


def _obstacle(
    plan: Plan, step: Step, cause: Failure | None, *, accept_missing: bool
) -> tuple[str, Failure | None] | None:
    """Return why a step may not answer now, and which failure that is; None where it may."""
    candidate = step.candidate
    if candidate is None:
        return "there is no such version any more", Failure.UNAVAILABLE
    for condition in step.conditions:
        unmet = _unmet(condition, plan.request, cause)
        if unmet is not None:
            return unmet, None
    if candidate.obstacle is not None:
        return candidate.obstacle.why, Failure.UNAVAILABLE
    lacking = plan.request.capabilities - set(candidate.version.capabilities)
    if lacking:
        return f"it cannot do {', '.join(sorted(lacking))}", Failure.UNAVAILABLE
    seconds = plan.situation.blocked_for(candidate.key)
    if seconds > 0:
        return f"it failed a short while ago and is left alone for {math.ceil(seconds)} s more", Failure.COOLDOWN
    if candidate.missing is not None and not accept_missing:
        return candidate.missing, Failure.UNAVAILABLE
    return None


def _unmet(condition: Condition, request: Request, cause: Failure | None) -> str | None:
    if condition.on and cause not in condition.on:
        return f"it is only for {', '.join(failure.value for failure in condition.on)}"
    if condition.marketplaces and request.marketplace not in condition.marketplaces:
        return f"it is only for {', '.join(condition.marketplaces)}"
    low, high = condition.min_complexity, condition.max_complexity
    if low is None and high is None:
        return None
    if request.complexity is None:
        return "it is only for pictures of a certain complexity, and none was measured"
    if not (0.0 if low is None else low) <= request.complexity <= (1.0 if high is None else high):
        return f"it is not for pictures of complexity {request.complexity:.2f}"
    return None


def _nobody(plan: Plan) -> SeraiError:
    """Return the error for a plan in which nobody may answer."""
    skipped: list[dict[str, str]] = []
    waits: list[float] = []
    cause: Failure | None = None
    for step in plan.steps:
        found = _obstacle(plan, step, cause, accept_missing=True)
        assert found is not None, "a step that may answer would have been taken"
        why, failure = found
        cause = failure or cause
        skipped.append({"candidate": step.name, "why": why})
        if failure is Failure.COOLDOWN and step.candidate is not None:
            waits.append(plan.situation.blocked_for(step.candidate.key))
    where = f"The service {plan.service}" if plan.service else "The request"
    if waits:
        return CandidateInCooldown(
            f"{where} has no candidate that may answer now: {skipped[0]['candidate']} {skipped[0]['why']}.",
            details=skipped,
            retry_after=min(waits),
        )
    told = "; ".join(f"{entry['candidate']}: {entry['why']}" for entry in skipped) or "nothing fits what was asked"
    remedies = [step.candidate.remedy for step in plan.steps if step.candidate is not None and step.candidate.remedy]
    # The end of a chain asks least of the machine, so its remedy is the one to name.
    hint = f"{remedies[-1]} brings the last of them here." if remedies else None
    return NoCandidate(f"{where} has no candidate that may answer ({told}).", hint=hint, details=skipped)


def _decision(plan: Plan, outcome: Outcome, error: str | None, ms: float) -> Decision:
    model, version = plan.candidate.key
    return Decision(
        model=model,
        version=version,
        service=plan.service,
        reason=plan.current_reason,
        explanation=explain(plan, outcome, error),
        chain=(*plan.links, _link(plan, outcome, error, ms)),
        warnings=(*plan.warnings, *plan.candidate.warnings, *_missing_warning(plan.candidate)),
    )


def _missing_warning(candidate: Candidate) -> tuple[str, ...]:
    return () if candidate.missing is None else (f"{candidate.name} may not load, for {candidate.missing}.",)


def _link(plan: Plan, outcome: Outcome, error: str | None, ms: float) -> ChainLink:
    model, version = plan.candidate.key
    return ChainLink(model=model, version=version, outcome=outcome, error=error, ms=ms)


def _failed_outcome(failure: Failure) -> Outcome:
    return Outcome.SKIPPED if failure.never_tried else Outcome.FAILED
