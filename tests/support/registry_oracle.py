"""What the registry should do, in plain dictionaries: an oracle for its state machine.

It knows the rules of the specification and nothing of the code: no SQL, no snapshot, no order but
that of `NUMBERS`. Each change returns the audit entries that it must write, or raises `Refused`
with the code of the error.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

NUMBERS = ("1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0")
"""The numbers that are used, in the order of their precedence."""

MOVES = {
    "draft": {"active", "tombstone"},
    "active": {"deprecated", "tombstone"},
    "deprecated": {"active", "retired", "tombstone"},
    "retired": {"tombstone"},
}

Entry = tuple[str, str]
Target = tuple[str, str | None, str | None, int]
"""Model, version, alias, weight."""
Content = tuple[tuple[Target, ...], tuple[str, ...]]
"""Targets, and the services of the chain."""


class Refused(Exception):
    """The change must be refused with this code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class OVersion:
    number: str
    seq: int
    status: str
    engine: str = ""
    notes: str = ""
    immutable: bool = False
    published: bool = False


@dataclass
class OService:
    revision: int
    content: Content
    created_at: datetime
    published: bool = False
    rolled_back_to: int | None = None


@dataclass
class Move:
    epoch: int
    before: str | None
    after: str | None
    at: datetime


@dataclass
class Oracle:
    limit: int
    deprecate_oldest: bool
    now: datetime
    models: dict[str, dict[str, OVersion]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    services: dict[str, OService] = field(default_factory=dict)
    used: dict[str, list[str]] = field(default_factory=dict)
    """Every number that a model ever had, in the order of their seq."""
    moves: dict[tuple[str, str], list[Move]] = field(default_factory=dict)
    revisions: dict[str, dict[int, tuple[Content, datetime]]] = field(default_factory=dict)
    answers: dict[str, list[tuple[datetime, tuple[str, ...] | None]]] = field(default_factory=dict)

    # --- questions ---

    def means(self, target: Target) -> str | None:
        """Return the number that a target means now."""
        model, version, alias, _ = target
        versions = self.models.get(model, {})
        if alias is not None:
            version = self.aliases.get((model, alias))
        if version is not None or alias is not None:
            return version if version in versions else None
        for status in ("active", "deprecated", "draft"):
            for number in reversed(NUMBERS):
                if number in versions and versions[number].status == status:
                    return number
        return None

    def bound(self, service_id: str) -> tuple[str, ...]:
        meant = [(target[0], self.means(target)) for target in self.services[service_id].content[0]]
        return tuple(f"{model}@{number}" for model, number in meant if number is not None)

    def reaching(self, direct: Iterable[str]) -> set[str]:
        """Return these services and all whose chains lead to them."""
        reached = set(direct)
        while more := {name for name, one in self.services.items() if set(one.content[1]) & reached} - reached:
            reached |= more
        return reached

    def users(self, model: str, number: str) -> set[str]:
        return self.reaching(name for name in self.services if f"{model}@{number}" in self.bound(name))

    def newest(self, model: str) -> str | None:
        return next((number for number in reversed(NUMBERS) if number in self.models[model]), None)

    # --- rules ---

    def find(self, model: str, number: str) -> OVersion:
        if model not in self.models:
            raise Refused("MODEL_NOT_FOUND")
        if number not in self.models[model]:
            raise Refused("VERSION_NOT_FOUND")
        return self.models[model][number]

    def check_move(self, version: OVersion, after: str) -> None:
        if after not in MOVES[version.status]:
            raise Refused("INVALID_STATUS_MOVE")

    def check_unused(self, model: str, number: str, force: bool) -> set[str]:
        users = self.users(model, number)
        if users and not force:
            raise Refused("VERSION_IN_USE")
        return users

    def make_room(self, model: str) -> list[Entry]:
        active = [one for one in self.models[model].values() if one.status == "active"]
        if len(active) < self.limit:
            return []
        held = {name.partition("@")[2] for one in self.services for name in self.bound(one) if name.startswith(model)}
        held |= {number for (owner, _), number in self.aliases.items() if owner == model}
        free = sorted((one for one in active if one.number not in held), key=lambda one: one.seq)
        if not (self.deprecate_oldest and free):
            raise Refused("ACTIVE_VERSION_LIMIT_EXCEEDED")
        free[0].status = "deprecated"
        return [("versions.deprecate", f"{model}@{free[0].number}")]

    def check_bindable(self, target: Target, kept: set[str]) -> None:
        number = self.means(target)
        if number is None:
            raise Refused("VERSION_NOT_FOUND" if target[0] in self.models else "MODEL_NOT_FOUND")
        status = self.models[target[0]][number].status
        if status == "retired":
            raise Refused("VERSION_NOT_ACTIVE")
        if status == "deprecated" and f"{target[0]}@{number}" not in kept:
            raise Refused("DEPRECATED_VERSION")

    def kept(self, content: Content) -> set[str]:
        return {f"{target[0]}@{self.means(target)}" for target in content[0] if self.means(target) is not None}

    def check_content(self, service_id: str, content: Content, kept: set[str]) -> None:
        targets, links = content
        if len({target[:3] for target in targets}) != len(targets):
            raise Refused("INVALID_SPLIT")
        for target in targets:
            self.check_bindable(target, kept)
        for link in links:
            if link == service_id:
                raise Refused("FALLBACK_CYCLE")
            if link not in self.services:
                raise Refused("SERVICE_NOT_FOUND")
        pending, seen = list(links), set()
        while pending:
            name = pending.pop()
            if name == service_id:
                raise Refused("FALLBACK_CYCLE")
            if name not in seen:
                seen.add(name)
                pending += self.services[name].content[1]

    def service(self, service_id: str) -> OService:
        if service_id not in self.services:
            raise Refused("SERVICE_NOT_FOUND")
        return self.services[service_id]

    def revise(self, service_id: str, content: Content, rolled_back_to: int | None = None) -> None:
        known = self.revisions.setdefault(service_id, {})
        n = len(known) + 1
        known[n] = (content, self.now)
        service = self.services[service_id]
        service.revision, service.content, service.rolled_back_to = n, content, rolled_back_to

    def detach(self, service_ids: Iterable[str]) -> list[Entry]:
        done: list[Entry] = []
        for service_id in sorted(set(service_ids) & self.services.keys()):
            targets, links = self.services[service_id].content
            living = [target for target in targets if self.is_living(target)]
            total = sum(target[3] for target in living)
            weights = [target[3] * 100 // total for target in living]
            if weights:
                weights[0] += 100 - sum(weights)
            left = tuple((*target[:3], weight) for target, weight in zip(living, weights, strict=True))
            content = (left, tuple(link for link in links if link in self.services))
            if content != (targets, links):
                self.revise(service_id, content)
                done.append(("services.detach", service_id))
        return done

    def is_living(self, target: Target) -> bool:
        number = self.means(target)
        return number is not None and self.models[target[0]][number].status != "retired"

    def move_alias(self, model: str, name: str, after: str | None) -> None:
        known = self.moves.setdefault((model, name), [])
        known.append(Move(len(known) + 1, self.aliases.get((model, name)), after, self.now))
        if after is None:
            del self.aliases[model, name]
        else:
            self.aliases[model, name] = after

    def drop_aliases(self, model: str, number: str) -> list[Entry]:
        names = [name for (owner, name), to in self.aliases.items() if (owner, to) == (model, number)]
        for name in names:
            self.move_alias(model, name, None)
        return [("aliases.delete", f"{model}@{name}") for name in names]

    # --- changes ---

    def add_version(self, model: str, number: str, status: str, engine: str) -> None:
        known = self.used.setdefault(model, [])
        known.append(number)
        self.models[model][number] = OVersion(number, len(known), status, engine)

    def create_model(self, model: str, number: str) -> list[Entry]:
        if model in self.models:
            raise Refused("MODEL_ALREADY_EXISTS")
        if model in self.services:
            raise Refused("NAME_COLLISION")
        if number in self.used.get(model, ()):
            raise Refused("VERSION_ALREADY_EXISTS")
        self.models[model] = {}
        self.add_version(model, number, "active", "")
        return [("models.create", model)]

    def delete_model(self, model: str, force: bool) -> list[Entry]:
        if model not in self.models:
            raise Refused("MODEL_NOT_FOUND")
        naming = (name for name, one in self.services.items() if any(target[0] == model for target in one.content[0]))
        users = self.reaching(naming)
        if users and not force:
            raise Refused("VERSION_IN_USE")
        for name in [name for owner, name in self.aliases if owner == model]:
            self.move_alias(model, name, None)
        del self.models[model]
        return [("models.delete", model), *self.detach(users)]

    def create_version(self, model: str, number: str, status: str) -> list[Entry]:
        if model not in self.models:
            raise Refused("MODEL_NOT_FOUND")
        if number in self.used[model]:
            raise Refused("VERSION_ALREADY_EXISTS")
        base = self.newest(model)
        engine = self.models[model][base].engine if base is not None else ""
        done = self.make_room(model) if status == "active" else []
        self.add_version(model, number, status, engine)
        return [*done, ("versions.create", f"{model}@{number}")]

    def edit(self, model: str, number: str, engine: str | None, notes: str) -> list[Entry]:
        version = self.find(model, number)
        moved = engine is not None and engine != version.engine
        if not moved and notes == version.notes:
            return []
        published = any(self.services[name].published for name in self.users(model, number))
        if moved and (version.immutable or published):
            raise Refused("IMMUTABLE_VERSION")
        version.notes = notes
        version.engine = version.engine if engine is None else engine
        return [("versions.update", f"{model}@{number}")]

    def deprecate(self, model: str, number: str, force: bool) -> list[Entry]:
        version = self.find(model, number)
        self.check_move(version, "deprecated")
        self.check_unused(model, number, force)
        version.status = "deprecated"
        return [("versions.deprecate", f"{model}@{number}")]

    def activate(self, model: str, number: str) -> list[Entry]:
        version = self.find(model, number)
        self.check_move(version, "active")
        done = self.make_room(model)
        version.status = "active"
        return [*done, ("versions.activate", f"{model}@{number}")]

    def publish(self, model: str, number: str) -> list[Entry]:
        version = self.find(model, number)
        done = self.make_room(model) if version.status == "draft" else []
        if version.status == "retired":
            raise Refused("INVALID_STATUS_MOVE")
        version.status = "active" if version.status == "draft" else version.status
        version.published = version.immutable = True
        return [*done, ("versions.publish", f"{model}@{number}")]

    def unpublish(self, model: str, number: str, force: bool) -> list[Entry]:
        version = self.find(model, number)
        self.check_unused(model, number, force)
        if not version.published:
            raise Refused("CONFLICT")
        version.published = False
        return [("versions.unpublish", f"{model}@{number}")]

    def retire(self, model: str, number: str, force: bool) -> list[Entry]:
        version = self.find(model, number)
        self.check_move(version, "retired")
        users = self.check_unused(model, number, force)
        version.status = "retired"
        dropped = self.drop_aliases(model, number)
        return [("versions.retire", f"{model}@{number}"), *dropped, *self.detach(users)]

    def delete_version(self, model: str, number: str, force: bool) -> list[Entry]:
        self.find(model, number)
        users = self.check_unused(model, number, force)
        dropped = self.drop_aliases(model, number)
        del self.models[model][number]
        return [*dropped, ("versions.delete", f"{model}@{number}"), *self.detach(users)]

    def put_alias(self, model: str, name: str, number: str, expected: str | None, check: bool) -> list[Entry]:
        if self.find(model, number).status == "retired":
            raise Refused("VERSION_NOT_ACTIVE")
        if check and self.aliases.get((model, name)) != expected:
            raise Refused("ALIAS_MOVED")
        for service in self.services.values():
            if any(target[0] == model and target[2] == name for target in service.content[0]):
                self.check_bindable((model, number, None, 100), self.kept(service.content))
        self.move_alias(model, name, number)
        return [("aliases.put", f"{model}@{name}")]

    def delete_alias(self, model: str, name: str, force: bool) -> list[Entry]:
        if model not in self.models:
            raise Refused("MODEL_NOT_FOUND")
        if (model, name) not in self.aliases:
            raise Refused("ALIAS_NOT_FOUND")
        users = [
            service_id
            for service_id, one in self.services.items()
            if any(target[0] == model and target[2] == name for target in one.content[0])
        ]
        if users and not force:
            raise Refused("VERSION_IN_USE")
        self.move_alias(model, name, None)
        return [("aliases.delete", f"{model}@{name}"), *self.detach(users)]

    def create_service(self, service_id: str, content: Content) -> list[Entry]:
        if service_id in self.services:
            raise Refused("SERVICE_ALREADY_EXISTS")
        if service_id in self.models:
            raise Refused("NAME_COLLISION")
        self.check_content(service_id, content, set())
        self.services[service_id] = OService(0, content, created_at=self.now)
        self.revise(service_id, content)
        return [("services.create", service_id)]

    def update_service(self, service_id: str, content: Content) -> list[Entry]:
        service = self.service(service_id)
        self.check_content(service_id, content, self.kept(service.content))
        if content != service.content:
            self.revise(service_id, content)
        return [("services.update", service_id)]

    def switch(self, service_id: str, model: str, number: str | None, alias: str | None) -> list[Entry]:
        service = self.service(service_id)
        binding = max(service.content[0], key=lambda target: target[3], default=None)
        if binding is None or binding[0] != model or model not in self.models:
            raise Refused("SERVICE_VERSION_SWITCH_ERROR")
        target: Target = (model, number, alias, 100)
        content = ((target,), service.content[1])
        self.check_content(service_id, content, self.kept(service.content))
        self.revise(service_id, content)
        return [("services.switch", service_id)]

    def rollback(self, service_id: str, to: int | None) -> list[Entry]:
        service = self.service(service_id)
        base = service.rolled_back_to or service.revision
        for n, (content, made) in sorted(self.revisions[service_id].items(), reverse=True):
            earlier = n < base and content != service.content and made >= service.created_at
            if (to is None and earlier) or n == to:
                self.check_content(service_id, content, self.kept(content))
                self.revise(service_id, content, rolled_back_to=n)
                return [("services.rollback", service_id)]
        raise Refused("NOTHING_TO_ROLL_BACK")

    def set_published(self, service_id: str, published: bool) -> list[Entry]:
        service = self.service(service_id)
        if service.published == published:
            return []
        service.published = published
        return [("services.publish" if published else "services.unpublish", service_id)]

    def delete_service(self, service_id: str, force: bool) -> list[Entry]:
        self.service(service_id)
        chained = [name for name, one in self.services.items() if service_id in one.content[1]]
        if chained and not force:
            raise Refused("VERSION_IN_USE")
        del self.services[service_id]
        return [("services.delete", service_id), *self.detach(chained)]

    # --- what answered when ---

    def note_answers(self) -> None:
        """Remember what each service means from now on; for after every change."""
        for service_id in self.revisions:
            meant = self.bound(service_id) if service_id in self.services else None
            self.answers.setdefault(service_id, []).append((self.now, meant))

    def answered(self, service_id: str, at: datetime) -> tuple[str, ...] | None:
        """Return what a service meant at a time; None where there was none."""
        past = [meant for since, meant in self.answers.get(service_id, ()) if since <= at]
        return past[-1] if past else None
