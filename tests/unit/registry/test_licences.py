"""The licence gate: what may be used where, and why not."""

import pytest

from serai.registry.licences import LICENCES, check_licence, find_licence


@pytest.mark.parametrize(
    ("licence", "commercial"),
    [
        ("MIT", True),
        ("Apache-2.0", True),
        ("apache-2.0", True),
        ("GPL-3.0-or-later", True),
        ("CC-BY-NC-4.0", False),
        ("flux-1-dev-non-commercial", False),
        ("flux-1-dev-non-commercial-license", False),
        ("OPT-175B", False),
        ("wav2lip-non-commercial", False),
    ],
)
def test_the_table_says_what_is_commercial(licence: str, commercial: bool) -> None:
    """A known licence passes a commercial deployment or not, with its name in the reason."""
    clearance = check_licence(licence, None, (), "commercial")
    known = find_licence(licence)
    assert known is not None
    assert clearance.allowed is commercial
    assert known.name in clearance.reason


@pytest.mark.parametrize("licence", ["my-own-licence", "", "  "])
def test_an_unknown_licence_is_not_cleared_for_commercial_use(licence: str) -> None:
    """Not knowing counts as no, and says so; a private deployment may use it and is warned."""
    clearance = check_licence(licence, None, (), "commercial")
    assert not clearance.allowed
    assert "not cleared" in clearance.reason
    private = check_licence(licence, None, (), "private")
    assert private.allowed
    assert private.warning is not None


def test_what_a_version_says_of_itself_counts() -> None:
    """A bought licence clears a version, and a version may forbid what its licence allows."""
    assert check_licence("flux-1-dev-non-commercial", True, (), "commercial").allowed
    assert not check_licence("MIT", False, (), "commercial").allowed


@pytest.mark.parametrize("deployment", ["private", "research"])
def test_other_deployments_may_use_everything(deployment: str) -> None:
    """Nothing in the table is refused for private use or research."""
    assert all(check_licence(name, None, (), deployment).allowed for name in LICENCES)  # type: ignore[arg-type]


def test_research_only_is_told_to_a_private_deployment() -> None:
    """A licence for research alone warns who is not doing research."""
    assert "research only" in (check_licence("OPT-175B", None, (), "private").warning or "")
    assert check_licence("OPT-175B", None, (), "research").warning is None
    assert check_licence("MIT", None, (), "private").warning is None


def test_duties_come_from_both_and_once() -> None:
    """The duties are those of the licence and those of the version, without repetition."""
    known = find_licence("MIT")
    assert known is not None
    clearance = check_licence("MIT", None, ("Show a watermark.", *known.duties), "private")
    assert clearance.duties == (*known.duties, "Show a watermark.")
