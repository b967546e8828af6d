"""Who draws and with which settings: defaults, bounds, what is fixed, adapters, and what is refused."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.images.model import MAX_SEED, MAX_STEPS, AdapterScale, ImageRequest, ImageSettings
from serai.images.plan import EDIT, Resolved, accepts, planned, resolved
from serai.registry.errors import ModelNotFound, NoCandidate
from serai.registry.failure import QUIET, Cooldown, Situation
from serai.registry.parameters import Parameter
from serai.registry.source import Adapter, PackageSource, RemoteSource
from serai.registry.version import Version
from unit.registry.build import a_model, a_service, a_snapshot, a_version, link, to

SOURCE = PackageSource(name="m")
ADAPTERS = (Adapter(id="soft", source=SOURCE, scale=0.5), Adapter(id="sharp", source=SOURCE))


def a_painter(**parameters: Parameter) -> Version:
    return a_version("painter", parameters=parameters, adapters=ADAPTERS)


def ask(image: str | None = None, previews: int | None = None, **settings: Any) -> ImageRequest:
    return ImageRequest(prompt="a lighthouse", image=image, previews=previews, settings=ImageSettings(**settings))


def resolve(version: Version, asked: ImageRequest) -> Resolved:
    return resolved(version, asked, seed=7)


def refusal(version: Version, asked: ImageRequest) -> dict[str, str]:
    """Return field and problem of what must be refused."""
    with pytest.raises(InvalidInput) as caught:
        resolve(version, asked)
    (entry,) = caught.value.details or ()
    return dict(entry)


def test_what_nobody_says_is_usual() -> None:
    """512 × 512, 20 steps, guidance 7.5, the seed of the job, adapters as the version has them."""
    found = resolve(a_painter(), ask())
    assert (found.width, found.height, found.steps, found.guidance_scale, found.seed) == (512, 512, 20, 7.5, 7)
    assert (found.images, found.format, found.quality, found.strength, found.preview_steps) == (1, "png", None, None, 3)
    assert found.adapters == (("soft", 0.5), ("sharp", 1.0))
    assert found.task(ask()).adapter_scales == {}


def test_the_version_says_what_the_request_does_not() -> None:
    """Its defaults go before the usual ones, under either name of the steps; what is given goes before both."""
    version = a_painter(
        width=Parameter(default=64), steps=Parameter(default=4), guidance_scale=Parameter(default=0, fixed=True)
    )
    found = resolve(version, ask(height=128))
    assert (found.width, found.height, found.steps, found.guidance_scale) == (64, 128, 4, 0.0)
    assert resolve(version, ask(num_inference_steps=9)).steps == 9


def test_a_usual_value_moves_into_the_bounds() -> None:
    """A version of large pictures that names no default takes the smallest of its own."""
    assert resolve(a_painter(width=Parameter(min=1024), height=Parameter(max=256)), ask()).width == 1024
    assert resolve(a_painter(height=Parameter(max=256)), ask()).height == 256


def test_a_refusal_names_field_bound_and_value() -> None:
    """As 'settings.…', for bounds, for what is fixed, and for sides that the autoencoder cannot make."""
    version = a_painter(
        width=Parameter(default=512, min=256, max=1024),
        num_inference_steps=Parameter(default=4, max=8),
        guidance_scale=Parameter(default=0.0, fixed=True),
    )
    for settings, field, words in (
        ({"width": 2048}, "settings.width", ("1024", "2048")),
        ({"width": 128}, "settings.width", ("256", "128")),
        *(({"width": side}, "settings.width", ("at least 256", str(side))) for side in (0, -512)),
        ({"width": 10**9}, "settings.width", ("at most 1024", str(10**9))),
        ({"width": 260}, "settings.width", ("8", "260")),
        ({"num_inference_steps": 9}, "settings.num_inference_steps", ("8", "9")),
        ({"guidance_scale": 3.5}, "settings.guidance_scale", ("0.0", "3.5")),
        ({"height": 4096}, "settings.height", ("2048", "4096")),
        ({"max_sequence_length": 99}, "settings.max_sequence_length", ("not a parameter",)),
        ({"strength": 0.5}, "settings.strength", ("image",)),
    ):
        entry = refusal(version, ask(**settings))
        assert entry["field"] == field, settings
        assert all(word in entry["problem"] for word in words), entry


def test_sides_are_multiples_of_what_the_version_says() -> None:
    """Of 64, where its network halves them so often: others are refused by name, and defaults moved to them."""
    side = Parameter(min=64, max=1000, multiple_of=64)
    version = a_painter(width=side, height=side)
    assert refusal(version, ask(width=520)) == {
        "field": "settings.width",
        "problem": "must be a multiple of 64, not 520",
    }
    assert (resolve(version, ask()).width, resolve(version, ask(height=448)).height) == (512, 448)
    fitted = resolved(version, ask(image="file_1"), seed=7, source_size=(300, 200))
    assert (fitted.width, fitted.height) == (512, 320)
    open_side = a_painter(width=Parameter(multiple_of=64))
    assert refusal(open_side, ask(width=2**20))["problem"] == "must be at most 8192, not 1048576"
    odd = Parameter(multiple_of=48)
    assert resolve(a_painter(width=odd, height=odd), ask()).width == 528


def test_no_version_takes_more_steps_than_samplers_have_times() -> None:
    """Whatever it says itself: nothing that a worker would refuse, or end of, is queued."""
    for name in ("num_inference_steps", "steps"):
        version = a_painter(**{name: Parameter(default=20)})
        assert resolve(version, ask(num_inference_steps=MAX_STEPS)).steps == MAX_STEPS
        assert refusal(version, ask(num_inference_steps=MAX_STEPS + 1)) == {
            "field": "settings.num_inference_steps",
            "problem": f"must be at most {MAX_STEPS}, not {MAX_STEPS + 1}",
        }
        assert resolve(a_painter(**{name: Parameter(default=5000, max=9000)}), ask()).steps == MAX_STEPS


def test_the_number_of_pictures_is_the_versions_where_nobody_says() -> None:
    """Fixed or not; another than the fixed one is refused, and one is usual."""
    four = a_painter(num_images=Parameter(default=4, fixed=True))
    assert (resolve(four, ask()).images, resolve(four, ask(num_images=4)).images) == (4, 4)
    assert refusal(four, ask(num_images=1))["field"] == "settings.num_images"
    assert resolve(a_painter(num_images=Parameter(default=3)), ask(num_images=1)).images == 1
    assert refusal(a_painter(num_images=Parameter(max=50)), ask(num_images=9))["field"] == "settings.num_images"


def test_the_seed_is_the_versions_where_nobody_says() -> None:
    """A fixed or a usual one is used; one that is drawn lies within the bounds, so that it may be sent again."""
    fixed = a_painter(seed=Parameter(default=42, fixed=True))
    assert (resolve(fixed, ask()).seed, resolve(a_painter(seed=Parameter(default=5)), ask()).seed) == (42, 5)
    assert refusal(fixed, ask(seed=7))["field"] == "settings.seed"
    few = a_painter(seed=Parameter(min=10, max=1000))
    for drawn in (0, 7, 990, 991, 2**32 - 1):
        for images in (1, 8):
            first = resolved(few, ask(num_images=images), seed=drawn).seed
            assert 10 <= first <= first + images - 1 <= 1000
            assert resolved(few, ask(num_images=images, seed=first), seed=0).seed == first
    assert resolve(a_painter(seed=Parameter(default=-1, max=1000)), ask()).seed == 7


def test_the_last_seed_is_within_the_bounds() -> None:
    """Picture i has seed + i: the request is refused where one of them would go beyond what the version takes."""
    few = a_painter(seed=Parameter(max=1000))
    assert resolve(few, ask(seed=998, num_images=3)).seed == 998
    assert refusal(few, ask(seed=999, num_images=3)) == {
        "field": "settings.seed",
        "problem": "must be at most 998 for 3 pictures, not 999",
    }
    assert refusal(a_painter(), ask(seed=MAX_SEED, num_images=2))["field"] == "settings.seed"
    for version in (a_painter(seed=Parameter(default=42, fixed=True)), a_painter(seed=Parameter(default=8, max=8))):
        assert refusal(version, ask(num_images=2))["field"] == "settings.num_images"
        assert resolve(version, ask(num_images=1)).images == 1


def test_an_edit_has_no_strength() -> None:
    """None is told nor asked for, and previews spread over all steps; under a mask it has, or where it is declared."""
    edit = ask(image="file_1", num_inference_steps=30)
    found = resolved(a_painter(), edit, seed=7, task=EDIT)
    assert (found.strength, found.steps_made, found.preview_steps) == (None, 30, 5)
    assert "strength" not in found.settings()
    with pytest.raises(InvalidInput, match=r"settings\.strength"):
        resolved(a_painter(), ask(image="file_1", strength=0.5), seed=7, task=EDIT)
    masked = msgspec.structs.replace(ask(image="file_1", strength=0.5), mask="file_2")
    assert resolved(a_painter(), masked, seed=7, task=EDIT).strength == 0.5
    declared = a_painter(strength=Parameter(default=0.7, max=0.9))
    assert resolved(declared, edit, seed=7, task=EDIT).strength == 0.7
    assert resolve(a_painter(), edit).strength == 0.8


def test_a_negative_prompt_goes_to_who_follows_it() -> None:
    """Refused where the version says that it takes none, and where OpenAI's API has no word for it."""
    asked = msgspec.structs.replace(ask(), negative_prompt="fog")
    for version in (
        a_painter(negative_prompt=Parameter(default="", fixed=True)),
        a_version("painter", source=RemoteSource(endpoint="https://there.example", model="m")),
    ):
        assert refusal(version, asked)["field"] == "negative_prompt"
        resolve(version, ask())
    fal = RemoteSource(endpoint="https://there.example", model="m")
    for version in (a_painter(), a_version("painter", source=fal, engine_options={"images": "fal"})):
        resolve(version, asked)


@given(value=st.one_of(st.floats(), st.integers(-(10**30), 10**30), st.booleans(), st.none()))
def test_no_number_at_all_gets_through_unchecked(value: Any) -> None:
    """Whatever stands in a setting, the result is within the bounds, or the setting is named."""
    version = a_painter(width=Parameter(default=512, min=64, max=1024), strength=Parameter(default=0.5, min=0.1, max=1))
    for name in ("width", "height", "num_inference_steps", "guidance_scale", "num_images", "strength", "seed"):
        asked = ask(image="file_1")
        settings = msgspec.structs.replace(asked.settings, **{name: value})
        found, problem = outcome(version, msgspec.structs.replace(asked, settings=settings))
        if found is not None:
            check_bounds(found)
        else:
            assert problem.startswith(f"settings.{name}: "), (name, value)


def outcome(version: Version, asked: ImageRequest) -> tuple[Resolved | None, str]:
    try:
        return resolve(version, asked), ""
    except InvalidInput as error:
        return None, error.message


def check_bounds(found: Resolved) -> None:
    assert (found.width % 8, found.height % 8) == (0, 0)
    assert 64 <= found.width <= 1024
    assert 8 <= found.height <= 2048
    assert 1 <= found.images <= 8
    assert 1 <= found.steps <= 200
    assert math.isfinite(found.guidance_scale)
    assert 0 <= found.guidance_scale <= 30
    assert 0.1 <= (found.strength or 0) <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 512.5},
        {"width": "512"},
        {"num_images": 9},
        {"guidance_scale": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"adapters": [{"id": "a", "scale": 5}]},
        {"format": "gif"},
        {"sampler": "euler"},
    ],
    ids=str,
)
def test_what_no_model_takes_is_no_payload(settings: dict[str, Any]) -> None:
    """Refused with the setting's name before any version is asked."""
    with pytest.raises(InvalidInput) as caught:
        ImageRequest.of({"prompt": "x", "settings": settings})
    assert "settings" in caught.value.message
    with pytest.raises(InvalidInput):
        ImageRequest.of({"prompt": "x" * 4001})


def test_adapters_that_are_given_are_the_only_ones() -> None:
    """Others are switched off; an unknown one, and one named twice, is refused with its place."""
    found = resolve(a_painter(), ask(adapters=(AdapterScale(id="sharp", scale=0.25),)))
    assert found.task(ask()).adapter_scales == {"soft": 0.0, "sharp": 0.25}
    assert resolve(a_painter(), ask(adapters=())).task(ask()).adapter_scales == {"soft": 0.0, "sharp": 0.0}
    one = AdapterScale(id="soft")
    assert refusal(a_painter(), ask(adapters=(one, one)))["field"] == "settings.adapters[1].id"
    entry = refusal(a_painter(), ask(adapters=(one, AdapterScale(id="blurry"))))
    assert entry["field"] == "settings.adapters[1].id"
    assert "blurry" in entry["problem"]
    assert "soft, sharp" in entry["problem"]


def test_settings_sent_again_are_the_same() -> None:
    """What is told of a picture resolves to what made it."""
    version = a_painter(max_sequence_length=Parameter(default=77, max=512))
    for asked in (ask(), ask(width=128, seed=3, format="webp"), ask(image="file_1", strength=0.3, adapters=())):
        first = resolve(version, asked)
        again = msgspec.convert(first.settings(), ImageSettings)
        second = resolved(version, msgspec.structs.replace(asked, settings=again), seed=99)
        assert second.settings() == first.settings()
        assert second.reproducible


def test_a_picture_keeps_its_proportions() -> None:
    """Where no size is asked for; the longest side is the version's, within its bounds."""
    version = a_painter(width=Parameter(default=512, max=768), height=Parameter(default=512, max=300))
    for source_size, expected in (((1000, 500), (512, 256)), ((500, 1000), (256, 296)), ((3, 3000), (8, 296))):
        found = resolved(version, ask(image="file_1"), seed=0, source_size=source_size)
        assert (found.width, found.height) == expected
    asked = resolved(version, ask(image="file_1", width=64, height=64), seed=0, source_size=(1000, 500))
    assert (asked.width, asked.height) == (64, 64)


@given(steps=st.integers(1, 200), previews=st.integers(0, 100))
def test_enough_previews_are_made(steps: int, previews: int) -> None:
    """Evenly spread, before the last step; none where none are wanted."""
    found = resolve(a_painter(), ask(previews=previews, num_inference_steps=steps))
    every = found.preview_steps
    shown = len(range(every, steps, every)) if every else 0
    assert shown >= min(previews, steps - 1)
    assert found.previews == previews


def test_a_seed_makes_it_reproducible() -> None:
    """Unless the request says otherwise."""
    assert not resolve(a_painter(), ask()).reproducible
    assert resolve(a_painter(), ask(seed=1)).reproducible
    assert not resolve(a_painter(), ask(seed=1, reproducible=False)).reproducible


# Who draws

PAINTER = (a_model("painter", task="image-generation"), a_version("painter", capabilities=("image_to_image",)))
PLAIN = (a_model("plain", task="image-generation", priority=9), a_version("plain"))
EDITOR = (a_model("editor", task="image-edit"), a_version("editor"))
TALKER = (a_model("talker"), a_version("talker"))
WORLD = a_snapshot(*PAINTER, *PLAIN, *EDITOR, *TALKER)


def drawer(**asked: Any) -> str:
    return accepts(WORLD, QUIET, ImageRequest(prompt="x", **asked)).name


def test_a_model_is_taken_by_name_or_chosen() -> None:
    """By priority from those that draw; a picture goes to one that edits, and only to who can use it."""
    assert drawer(model="painter") == "painter@1.0.0"
    assert drawer() == drawer(model="auto") == "plain@1.0.0"
    assert drawer(image="file_1") == "editor@1.0.0"
    assert drawer(image="file_1", model="painter") == "painter@1.0.0"
    without = a_snapshot(*PAINTER, *PLAIN)
    assert accepts(without, QUIET, ImageRequest(prompt="x", image="file_1")).name == "painter@1.0.0"


def test_words_are_missing_in_variations_alone() -> None:
    """Those go to who draws from a picture, before who waits to be told what to change."""
    for empty in ("", " \n"):
        for asked in ({}, {"image": "file_1", "mask": "file_2"}, {"image": "file_1"} if empty else {}):
            with pytest.raises(InvalidInput, match=r"^prompt: is empty"):
                accepts(WORLD, QUIET, ImageRequest(prompt=empty, **asked))
    assert accepts(WORLD, QUIET, ImageRequest(prompt="", image="file_1")).name == "painter@1.0.0"
    edits_alone = a_snapshot(*PLAIN, *EDITOR)
    assert accepts(edits_alone, QUIET, ImageRequest(prompt="", image="file_1")).name == "editor@1.0.0"
    with pytest.raises(InvalidInput, match=r"^image: "):
        accepts(a_snapshot(*PLAIN), QUIET, ImageRequest(prompt="", image="file_1"))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"model": "talker"}, "model"),
        ({"model": "editor", "image": "file_1", "settings": ImageSettings(strength=0.5)}, "settings.strength"),
        ({"model": "editor"}, "image"),
        ({"model": "plain", "image": "file_1"}, "image"),
        ({"model": "painter", "image": "file_1", "mask": "file_2"}, "mask"),
        ({"image": "file_1", "mask": "file_2"}, "mask"),
        ({"mask": "file_2"}, "mask"),
        ({"model": "painter", "settings": ImageSettings(width=12)}, "settings.width"),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_at_its_field(asked: dict[str, Any], field: str) -> None:
    """Before anything is queued."""
    with pytest.raises(InvalidInput) as caught:
        drawer(**asked)
    (entry,) = caught.value.details or ()
    assert entry["field"] == field


def test_unknown_models_and_empty_registries_say_so() -> None:
    """As the registry does."""
    with pytest.raises(ModelNotFound):
        drawer(model="nobody")
    with pytest.raises(NoCandidate):
        accepts(a_snapshot(*TALKER), QUIET, ImageRequest(prompt="x"))


def test_a_chain_is_asked_of_its_first_that_can() -> None:
    """A link that cannot start from a picture is passed over, and the settings are those of who draws."""
    small = a_version("painter", capabilities=("image_to_image",), parameters={"width": Parameter(default=64, max=64)})
    service = a_service("draw", to("plain"), fallback=(link("painter"),), task="image-generation")
    world = a_snapshot(PAINTER[0], small, *PLAIN, service)
    found = accepts(world, QUIET, ImageRequest(prompt="x", service="draw", image="file_1"))
    assert found.name == "painter@1.0.0"
    with pytest.raises(InvalidInput, match=r"settings\.width"):
        wide = ImageSettings(width=128)
        accepts(world, QUIET, ImageRequest(prompt="x", model="draw", image="file_1", settings=wide))


def test_a_failure_a_short_while_ago_is_no_reason_to_refuse() -> None:
    """Another link is taken where there is one; else the job is accepted, and waits."""
    failed = Situation(now=0.0, cooldowns={("plain", "1.0.0"): Cooldown(until=300.0, seconds=300.0)})
    asked = ImageRequest(prompt="x", model="plain")
    assert accepts(WORLD, failed, asked).name == "plain@1.0.0"
    assert planned(WORLD, failed, ImageRequest(prompt="x")).candidate.name == "painter@1.0.0"
