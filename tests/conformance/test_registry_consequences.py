"""What a change of a model does to services that it does not name, on both databases."""

import pytest

from serai.registry import bindings, releases
from serai.registry.errors import DeprecatedVersion, LicenceRefused, VersionInUse
from serai.registry.service import FallbackEntry, Target
from support.registry import Desk, Opener, refused


def test_a_newer_version_whose_licence_refuses_it_takes_no_floating_service_along(start: Opener) -> None:
    """A service that follows its model stays with what may answer: the new version is refused, not the service."""
    desk = start(deployment="commercial")
    desk.model("m", "1.0.0", licence="MIT")
    desk.service("s", Target(model="m"))
    refused(LicenceRefused, desk, releases.create_version, "m", "2.0.0", {"licence": "CC-BY-NC-4.0"})
    desk.do(releases.create_version, "m", "2.0.0", {"licence": "Apache-2.0"})
    assert desk.see().meant_by(Target(model="m")).version.version == "2.0.0"


def test_a_model_in_use_is_switched_off_by_force_only(desk: Desk) -> None:
    """The refusal lists the services; what nobody uses may be switched off."""
    desk.model("used")
    desk.model("free")
    desk.service("s", Target(model="used"))
    error = refused(VersionInUse, desk, releases.update_model, "used", {"active": False})
    assert error.details == ["s"]
    desk.do(releases.update_model, "free", {"active": False})
    desk.do(releases.update_model, "used", {"active": False}, force=True)
    assert desk.see().models["used"].model.active is False


def test_a_model_whose_versions_were_all_deleted_can_have_a_new_one(desk: Desk) -> None:
    """It is based on nothing, and no number is used again."""
    desk.model("m", "1.0.0", engine="openvino")
    desk.do(releases.delete_version, "m", "1.0.0")
    made = desk.do(releases.create_version, "m", "1.1.0", {"engine": "transformers"})
    assert (made.engine, made.based_on, made.seq) == ("transformers", None, 2)


@pytest.mark.parametrize("numbers", [("1.0.0", "1.1.0")])
def test_standing_in_the_chain_is_no_binding(desk: Desk, numbers: tuple[str, str]) -> None:
    """A deprecated version that a service falls back on takes no switch to answer first."""
    desk.model("m", *numbers)
    link = FallbackEntry(model="m", version="1.1.0")
    desk.service("s", Target(model="m", version="1.0.0"), fallback=(link,))
    desk.do(releases.deprecate, "m", "1.1.0", force=True)
    refused(DeprecatedVersion, desk, bindings.switch_version, "s", model="m", version="1.1.0", alias=None)
