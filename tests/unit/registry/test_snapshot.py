"""A snapshot that was changed is one that was built."""

from hypothesis import given
from hypothesis import strategies as st

from serai.registry.version import Status
from unit.registry.build import a_model, a_snapshot, a_version

STATUSES = st.sampled_from([Status.DRAFT, Status.ACTIVE, Status.DEPRECATED, Status.TOMBSTONE])
ROWS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["1.0.0", "1.9.0", "1.10.0"]),
        STATUSES,
        st.sampled_from(["low", "high"]),
    ),
    unique_by=lambda row: row[:2],
    max_size=8,
)


@given(ROWS, ROWS, st.integers(0, 3))
def test_a_changed_snapshot_is_one_that_was_built_anew(
    before: list[tuple[str, str, Status, str]], after: list[tuple[str, str, Status, str]], priority: int
) -> None:
    """Replacing models one by one ends where building from all rows would."""

    def versions(rows: list[tuple[str, str, Status, str]]) -> list[object]:
        return [a_version(name, number, status=status, memory_class=memory) for name, number, status, memory in rows]

    old = [a_model(name, priority=1, lookup_names=(f"o/{name}",)) for name in "abc"]
    new = [a_model(name, priority=priority, lookup_names=(f"n/{name}",)) for name in "abc"]
    built = a_snapshot(*new, *versions(after))  # type: ignore[arg-type]
    changed = a_snapshot(*old, *versions(before))  # type: ignore[arg-type]
    for model in new:
        rows = [row for row in after if row[0] == model.id]
        changed = changed.with_model(model, versions(rows), ())  # type: ignore[arg-type]
    assert changed.models == built.models
    assert changed.names == built.names
    assert {key: found for key, found in changed.tasks.items() if found} == dict(built.tasks)
    assert changed.without_model("a").find_model("n/a") is None
    assert changed.without_model("nobody") is changed
