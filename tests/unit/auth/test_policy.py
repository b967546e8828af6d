"""The rules of access, over every combination there is."""

from datetime import UTC, datetime
from itertools import combinations, product

import pytest

from serai.auth.policy import PUBLIC, SCOPES, Access, Caller, Role, check_access, narrowed, owns
from serai.errors import Forbidden, Unauthenticated

ROLES = tuple(Role)
SOME = ("files", "keys", "users")
SETS = [frozenset(c) for n in range(len(SOME) + 1) for c in combinations(SOME, n)]


def caller(role: Role, scopes: frozenset[str] = frozenset(), user_id: str = "user_1") -> Caller:
    return Caller(user_id=user_id, name="ada", role=role, limit_id="key_1", scopes=scopes)


def test_roles_are_ordered_and_named() -> None:
    """Each role includes the ones before it; labels and roles lead to each other."""
    assert [role.label for role in sorted(ROLES)] == ["viewer", "user", "moderator", "admin"]
    assert [Role.of(role.label) for role in ROLES] == list(ROLES)


@pytest.mark.parametrize("label", ["", "root", "ADMIN ", "owner", "admin\x00"])
def test_another_word_is_no_role(label: str) -> None:
    """What is not one of the four labels is a KeyError."""
    with pytest.raises(KeyError):
        Role.of(label)


@pytest.mark.parametrize("access", [PUBLIC, *ROLES])
@pytest.mark.parametrize("role", [None, *ROLES])
def test_access_is_decided_by_role_and_scope(access: Access, role: Role | None) -> None:
    """The whole table: public for all; else a caller, whose role reaches and whose scopes, if any, hold the route's."""
    for scopes, scope in product(SETS, SOME):
        given = None if role is None else caller(role, scopes)
        if access is PUBLIC:
            check_access(given, access, scope)
        elif role is None or given is None:
            with pytest.raises(Unauthenticated):
                check_access(given, access, scope)
        elif role >= access and (not scopes or scope in scopes):
            check_access(given, access, scope)
        else:
            with pytest.raises(Forbidden):
                check_access(given, access, scope)


@pytest.mark.parametrize(("own", "other"), list(product(ROLES, repeat=2)))
def test_what_somebody_made_is_theirs_and_the_admins(own: Role, other: Role) -> None:
    """An owner sees their own whatever the role; of others only an admin does."""
    assert owns(caller(own, user_id="user_1"), "user_1")
    assert owns(caller(other, user_id="user_2"), "user_1") is (other is Role.ADMIN)


@pytest.mark.parametrize("asked", [None, *ROLES])
@pytest.mark.parametrize("held", ROLES)
def test_a_new_key_never_holds_more(held: Role, asked: Role | None) -> None:
    """The whole table: a greater role or a wider scope is refused, and what is granted reaches no new route."""
    for have, want in product(SETS, repeat=2):
        check_narrowed(held, asked, have, want)


def check_narrowed(held: Role, asked: Role | None, have: frozenset[str], want: frozenset[str]) -> None:
    maker = caller(held, have)
    allowed = (asked is None or asked <= held) and (not have or (want and want <= have))
    if not allowed:
        with pytest.raises(Forbidden):
            narrowed(maker, asked, want)
        return
    role, scopes = narrowed(maker, asked, want)
    assert (role, scopes) == (asked or held, want)
    made = caller(role, scopes)
    for access, scope in product(ROLES, SCOPES):
        try:
            check_access(made, access, scope)
        except Forbidden:
            continue
        check_access(maker, access, scope)


@pytest.mark.parametrize("role", ROLES)
def test_a_caller_knows_how_far_it_reaches(role: Role) -> None:
    """The two short questions agree with the order of roles."""
    assert caller(role).is_moderator is (role >= Role.MODERATOR)
    assert caller(role).is_admin is (role is Role.ADMIN)


def test_a_caller_does_not_change() -> None:
    """Nothing that a request does can raise its own caller."""
    given = caller(Role.VIEWER)
    with pytest.raises(AttributeError):
        given.role = Role.ADMIN  # type: ignore[misc]
    with pytest.raises(AttributeError):
        given.expires_at = datetime(2030, 1, 1, tzinfo=UTC)  # type: ignore[misc]
