"""What was broken in the services before this one, and the tests that keep it from being broken here."""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SEMVER = "unit/registry/test_semver.py"
LIFECYCLE = "unit/registry/test_lifecycle.py"
POLICY = "unit/registry/test_policy.py"
CHOICE = "unit/registry/test_automatic_choice.py"
PLAN = "unit/registry/test_plan.py"
STORE = "conformance/test_registry_store.py"
REGISTRY = "conformance/test_registry.py"
CHANGES = "conformance/test_registry_changes.py"
MACHINE = "conformance/test_registry_machine.py"
MODELS = "integration/api/test_models_api.py"
SERVICES = "integration/api/test_services_api.py"
LIMITS = "integration/api/test_rate_limits.py"
SERVERS = "integration/test_two_servers.py"

TRAPS = {
    '"1.0.0junk", "01.0.0" and "1.0.0\\n" accepted as versions': (
        f"{SEMVER}::test_what_is_not_strictly_a_version_is_refused",
        f"{REGISTRY}::test_a_number_that_is_no_semantic_version_is_refused",
        f"{MODELS}::test_a_model_that_cannot_be_is_refused_with_its_field",
        f"{MODELS}::test_a_version_that_cannot_be_is_refused",
    ),
    "1.9.0 sorted above 1.10.0": (
        f"{SEMVER}::test_keys_sort_as_versions_do",
        f"{POLICY}::test_a_bare_model_is_its_newest_active_version_by_precedence",
        f"{STORE}::test_versions_are_listed_by_precedence_and_paged",
        f"{REGISTRY}::test_the_default_is_the_newest_active_by_precedence",
        f"{MODELS}::test_versions_are_listed_by_precedence_in_pages",
    ),
    "auto-deprecation unreachable because validation raised first": (
        f"{LIFECYCLE}::test_automatic_deprecation_is_reached_before_the_refusal",
        f"{REGISTRY}::test_the_policy_deprecates_the_oldest_that_nobody_uses",
        f"{MODELS}::test_twenty_creators_at_once_never_pass_the_limit",
    ),
    "deprecating a missing version answered 200": (
        f"{REGISTRY}::test_a_status_moves_only_by_the_table",
        f"{MODELS}::test_whatever_is_done_to_a_missing_version_is_404",
    ),
    "release notes in PATCH silently lost": (
        f"{LIFECYCLE}::test_release_notes_in_a_patch_are_kept",
        f"{MODELS}::test_release_notes_in_a_patch_are_not_lost",
        f"{MODELS}::test_a_null_clears_what_may_be_empty_and_is_refused_for_the_rest",
    ),
    "auto-selection crashed before the first call and so the fallback never ran": (
        f"{CHOICE}::test_a_card_without_specifications_does_not_crash_the_choice",
        f"{PLAN}::test_our_failures_lead_to_the_next_candidate",
        f"{SERVICES}::test_an_explanation_is_the_decision_without_running_it",
    ),
    "caches not refreshed on switch": (
        f"{CHANGES}::test_another_server_catches_up_with_every_kind_of_change",
        f"{CHANGES}::test_a_change_is_seen_although_somebody_else_is_reading_it",
        f"{SERVICES}::test_a_switch_is_seen_by_the_next_request",
        f"{SERVICES}::test_requests_at_once_see_what_they_wrote",
        f"{SERVERS}::test_what_one_server_changes_the_other_sees_within_a_second",
    ),
    "naive local timestamps": (
        f"{SERVICES}::test_every_time_is_told_in_utc_wherever_the_server_stands",
        f"{SERVICES}::test_a_rollback_is_one_call_and_the_history_knows_all",
        f"{MODELS}::test_the_life_of_a_version",
    ),
    "rate limit that never limited because it ran before authentication": (
        f"{LIMITS}::test_one_too_many_is_429_for_that_key_alone",
        f"{LIMITS}::test_requests_at_the_same_time_are_counted_one_by_one",
    ),
}
"""Each trap in the words of the specification → the tests that name it."""

INVARIANTS = {
    "I1": (f"{MACHINE}::what_is_immutable_never_changes", f"{MACHINE}::rewrite_past_all_code"),
    "I2": (f"{MACHINE}::the_rows_are_sound", "support/registry.py::check_versions"),
    "I3": (f"{MACHINE}::the_rows_are_sound", "support/registry.py::check_versions"),
    "I4": (f"{MACHINE}::ask_what_was_named", "support/registry.py::check_aliases"),
    "I5": (f"{MACHINE}::the_rows_are_sound", "support/registry.py::check_services"),
    "I6": (f"{MACHINE}::the_rows_are_sound", "support/registry.py::check_services"),
    "I7": (f"{MACHINE}::both", f"{REGISTRY}::test_what_a_service_uses_is_refused_with_the_list"),
    "I8": (f"{MACHINE}::both", "support/registry.py::check_integrity"),
    "I9": (f"{MACHINE}::the_lists_agree_with_what_is_in_memory",),
    "I10": (
        "support/registry.py::check_versions",
        f"{CHANGES}::test_twenty_creators_at_once_never_pass_the_limit",
    ),
}
"""Each invariant of the specification → where it is looked for."""


@cache
def defined(path: str) -> frozenset[str]:
    """Return the names of the functions and methods in a file of the tests."""
    tree = ast.parse((TESTS / path).read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("named", [*TRAPS.items(), *INVARIANTS.items()], ids=lambda item: item[0])
def test_each_is_held_by_tests_that_exist(named: tuple[str, tuple[str, ...]]) -> None:
    """A test that was renamed or removed must be put right here, so that none of these is lost unseen."""
    _, tests = named
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        assert name in defined(path), f"{test} does not exist"
