"""The cards that ship are complete, honest about what is missing, and make the product chain work."""

import re

import pytest

from serai.errors import ConfigurationError
from serai.registry.cards import load_cards, load_services, parse_card
from serai.registry.checks import check_new_model, check_service
from serai.registry.decision import Reason
from serai.registry.errors import ModelNotPulled, NoCandidate
from serai.registry.licences import find_licence
from serai.registry.lifecycle import activate, receive_files
from serai.registry.plan import Request
from serai.registry.policy import decide, make_plan
from serai.registry.rules import RegistryRules
from serai.registry.snapshot import RegistrySnapshot
from serai.registry.source import Availability, File, HubSource
from serai.registry.version import Status, Version
from unit.registry.build import AT

CARDS = load_cards()
VERSIONS = [version for card in CARDS for version in card.to_versions(at=AT, by="serai")]
SERVICES = [service.to_service(at=AT, by="serai") for service in load_services()]
FILE = File(path="model.onnx", size=1, sha256="a" * 64)


def snapshot(versions: list[Version], **rules: str) -> RegistrySnapshot:
    return RegistrySnapshot.build(
        models=[card.to_model(at=AT, by="serai") for card in CARDS],
        versions=versions,
        services=SERVICES,
        rules=RegistryRules(**rules),  # type: ignore[arg-type]
    )


def pulled(*names: str) -> list[Version]:
    """The shipped versions, with those named as a pull leaves them."""
    return [
        activate(
            receive_files(one, source=one.source, files=(FILE,), footprint=one.footprint, at=AT, by="x"), at=AT, by="x"
        )
        if f"{one.model_id}@{one.version}" in names and one.source is not None
        else one
        for one in VERSIONS
    ]


def test_the_models_of_the_specification_are_there() -> None:
    """The product chain, lips, speech, chat, pictures and the models that were validated all have cards."""
    assert {card.model.id for card in CARDS} == {
        "birefnet",
        "flux-kontext-product",
        "flux-schnell",
        "gpt2",
        "opt-1.3b",
        "qwen3-0.6b",
        "qwen3-omni-30b",
        "starter-chat",
        "starter-image",
        "wav2lip",
        "whisper",
    }
    kontext = next(card for card in CARDS if card.model.id == "flux-kontext-product")
    assert [version.version for version in kontext.versions] == ["1.0.0", "2.0.0"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.model.id)
def test_a_card_is_complete(card: object) -> None:
    """Each card says what it is good and bad at, what it needs and which licence of the table it has."""
    assert card in CARDS
    found = next(one for one in CARDS if one is card)
    assert len(found.model.pros) >= 2
    assert len(found.model.cons) >= 2
    assert found.model.description
    for version in found.versions:
        assert find_licence(version.licence) is not None
        assert version.footprint or version.files
        assert version.capabilities
        if isinstance(version.source, HubSource):
            assert version.source.is_pinned
            assert re.fullmatch(r"[^/]+/[^/]+", version.source.repo)


def test_no_two_cards_answer_to_one_name() -> None:
    """The cards and services can be put into one registry, one after the other."""
    empty = RegistrySnapshot.build(models=(), versions=(), rules=RegistryRules())
    for card in CARDS:
        model = card.to_model(at=AT, by="serai")
        check_new_model(empty, model)
        empty = empty.with_model(model, card.to_versions(at=AT, by="serai"), ())
    for service in SERVICES:
        check_service(empty, service)


def test_what_is_not_here_does_not_claim_to_be() -> None:
    """What does not ship is a draft without files or digest that says what is missing; the starters ship."""
    for version in VERSIONS:
        if version.model_id in ("starter-chat", "starter-image"):
            assert (version.status, version.availability) == (Status.ACTIVE, Availability.READY)
            continue
        assert version.status is Status.DRAFT
        assert version.files == ()
        assert version.digest is None
        assert version.availability in (Availability.NEEDS_PULL, Availability.NEEDS_FILES)


def test_licences_say_what_a_business_may_not_run() -> None:
    """The non-commercial weights are exactly those of FLUX Kontext, OPT and Wav2Lip."""
    refused = {
        candidate.model.id
        for entry in snapshot(
            [one if one.status is Status.ACTIVE else activate(one, at=AT, by="x") for one in VERSIONS],
            deployment="commercial",
        ).models.values()
        for candidate in entry.candidates.values()
        if candidate.obstacle is not None
    }
    assert refused == {"flux-kontext-product", "opt-1.3b", "wav2lip"}


def test_a_fresh_machine_says_what_to_pull() -> None:
    """With nothing pulled, the service and a bare model name the call that comes next."""
    fresh = snapshot(VERSIONS)
    with pytest.raises(NoCandidate) as nobody:
        decide(fresh, Request(service="product-cutout"))
    assert "POST /pull" in (nobody.value.hint or "")
    with pytest.raises(ModelNotPulled) as missing:
        decide(fresh, Request(model="Qwen/Qwen3-0.6B"))
    assert missing.value.hint == 'POST /pull {"model": "Qwen/Qwen3-0.6B"}'


def test_the_chain_for_product_photos() -> None:
    """LoRA V2, then LoRA V1, then BiRefNet; with BiRefNet alone pulled, it answers and the rest is told."""
    everything = snapshot(pulled("flux-kontext-product@1.0.0", "flux-kontext-product@2.0.0", "birefnet@1.0.0"))
    plan = make_plan(everything, Request(service="product-cutout"))
    assert [step.name for step in plan.steps] == [
        "flux-kontext-product@2.0.0",
        "flux-kontext-product@1.0.0",
        "birefnet@1.0.0",
    ]
    assert plan.decision.reason is Reason.BOUND
    alone = decide(snapshot(pulled("birefnet@1.0.0")), Request(service="product-cutout"))
    assert (alone.model, alone.reason) == ("birefnet", Reason.FALLBACK_UNAVAILABLE)
    assert "must be brought" in alone.explanation


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"require_fast": True}, "flux-kontext-product@1.0.0"),
        ({"require_high_quality": True}, "flux-kontext-product@2.0.0"),
        ({"complexity": 0.9}, "flux-kontext-product@2.0.0"),
        ({"complexity": 0.1}, "birefnet@1.0.0"),
        ({}, "flux-kontext-product@2.0.0"),
    ],
)
def test_the_automatic_choice_among_the_shipped(asked: dict[str, object], expected: str) -> None:
    """The policy finds V1 for speed, V2 for quality and intricate pictures, BiRefNet for simple ones."""
    everything = snapshot(pulled("flux-kontext-product@1.0.0", "flux-kontext-product@2.0.0", "birefnet@1.0.0"))
    decision = decide(everything, Request(service="product-cutout", model="auto", **asked))  # type: ignore[arg-type]
    assert f"{decision.model}@{decision.version}" == expected


def test_a_business_is_served_by_birefnet() -> None:
    """A commercial deployment skips the LoRA for their licence, and says so."""
    everything = snapshot(
        pulled("flux-kontext-product@1.0.0", "flux-kontext-product@2.0.0", "birefnet@1.0.0"), deployment="commercial"
    )
    decision = decide(everything, Request(service="product-cutout"))
    assert decision.model == "birefnet"
    assert "FLUX.1 [dev] Non-Commercial License does not allow commercial use" in decision.explanation


def test_both_adapters_share_one_base() -> None:
    """LoRA V1 and V2 are two versions of one resident base."""
    one, two = (version for version in VERSIONS if version.model_id == "flux-kontext-product")
    assert one.base_digest == two.base_digest
    assert one.quantization == two.quantization
    assert one.adapters != two.adapters


GOOD = """
[model]
id = "x"
name = "X"
task = "chat"
description = "d"
publisher = "p"
licence = "MIT"
reference_url = "https://example.org"
pros = []
cons = []

[[versions]]
version = "1.0.0"
release_notes = "n"
source = { kind = "package", name = "x" }
memory_class = "low"
licence = "MIT"
"""


def test_a_card_of_something_that_ships_is_active() -> None:
    """What needs nothing fetched may answer at once, with its digest."""
    version = parse_card(GOOD, "x.toml").to_versions(at=AT, by="serai")[0]
    assert version.status is Status.ACTIVE
    assert version.digest is not None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('name = "X"', 'name = "X"\nnmae = "Y"'),
        ('release_notes = "n"', 'release_note = "n"'),
        ('kind = "package", name', 'kind = "package", branch = "b", name'),
        ('kind = "package"', 'kind = "ftp"'),
        ('memory_class = "low"', 'memory_class = "tiny"'),
        ('id = "x"', "id = 1"),
        ("[model]", "[model"),
        ('licence = "MIT"', 'licence = "MIT"\nparameters = { steps = { deflaut = 1 } }'),
    ],
)
def test_an_unknown_key_or_value_stops_the_loading(before: str, after: str) -> None:
    """A misspelt key, at any depth, is an error that names the file."""
    assert before in GOOD
    with pytest.raises(ConfigurationError, match=r"x\.toml"):
        parse_card(GOOD.replace(before, after), "x.toml")
