"""The gallery: one suite, on SQLite and on PostgreSQL, checked against a plain search of lists."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.audit import SYSTEM, entries
from serai.clock import ManualClock
from serai.errors import InvalidInput
from serai.images.model import Picture
from serai.images.store import PictureNotFound, add, change, get, matching, of_job, prune, remove, search
from serai.images.store.words import MAX_WORDS, mark, terms_of, words_of
from serai.storage import links
from serai.storage.backup import backup, restore
from serai.storage.connect import open_sqlite
from serai.storage.database import Database
from serai.storage.links import forget_unreferenced, recorded
from serai.storage.tables.images import pictures

pytestmark = pytest.mark.anyio
NOW = ManualClock().now()
LATER = NOW + timedelta(days=2)


def made(number: int, prompt: str = "", **values: Any) -> Picture:
    """Return a picture; they are a second apart."""
    plain: dict[str, Any] = {
        "id": f"img_{number}",
        "owner_id": "ada",
        "job_id": f"job_{number}",
        "position": 0,
        "model": "m",
        "version": "1.0.0",
        "decision": {"reason": "named"},
        "prompt": prompt,
        "negative_prompt": "",
        "settings": {"width": 8},
        "seed": 2**63 - 9,
        "width": 8,
        "height": 8,
        "format": "png",
        "digest": f"{number:064x}",
        "size": 100,
        "thumb_digest": f"{number + 2**32:064x}",
        "thumb_size": 10,
        "generation_ms": 5,
        "created_at": NOW + timedelta(seconds=number),
    }
    return Picture(**plain | values)


PROMPTS = [
    "a cat in the hat",
    "Cat's CAFÉ: sci-fi, 猫が好き",
    "کتاب‌های قدیمی و گربه 🐱‍👓",
    "the hat of a cat. " * 40,
    "NEAR(cat hat) OR 1=1 -- \"'*",
    "2001: a space odyssey, 4k",
]


@pytest.fixture
def gallery(database: Database) -> Callable[..., list[str]]:
    """Six pictures of ada's with PROMPTS; returns a search, as the ids found."""
    database.run_sync(add, [made(number, prompt) for number, prompt in enumerate(PROMPTS)], NOW)
    return lambda text=None, **asked: ids(database, owner_id="ada", text=text, **asked)


def ids(database: Database, **asked: Any) -> list[str]:
    return [picture.id for picture in database.read_sync(search, **asked)[0]]


def narrow(monkeypatch: pytest.MonkeyPatch, *, few: int, window: int) -> None:
    """Let a handful of pictures go every way that many would."""
    for name, value in {"_FEW": few, "_WALK": window, "_MERGE_WINDOW": window}.items():
        monkeypatch.setattr(matching, name, value)


def numbers(*values: int) -> list[str]:
    return [f"img_{value}" for value in values]


async def test_a_picture_comes_back_as_it_was_added(database: Database) -> None:
    """Every field, and adding it again changes nothing."""
    picture = made(1, "a cat", tags=("x",), is_favourite=True, position=3)
    await database.run(add, [picture], NOW)
    await database.run(add, [replace(picture, prompt="other")], NOW)
    assert await database.read(get, picture.id, "ada") == picture
    assert await database.read(get, picture.id, None) == picture
    assert await database.read(of_job, "job_1", "ada") == [picture]
    assert await database.read(of_job, "job_1", "bob") == []


async def test_others_pictures_do_not_exist(database: Database, gallery: Callable[..., list[str]]) -> None:
    """Neither looking, changing, removing nor searching reaches them."""
    with pytest.raises(PictureNotFound):
        await database.read(get, "img_0", "bob")
    with pytest.raises(PictureNotFound):
        await database.run(remove, "img_0", "bob", SYSTEM, NOW)
    with pytest.raises(PictureNotFound):
        await database.run(change, "img_0", "bob", tags=("x",), is_favourite=None, actor=SYSTEM, at=NOW)
    assert ids(database, owner_id="bob", text="cat") == ids(database, owner_id="bob") == []
    assert ids(database, owner_id=None, text="odyssey") == gallery("odyssey") == numbers(5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cat", (4, 3, 1, 0)),
        ("hat CAT", (4, 3, 0)),
        ('"cat in the hat"', (0,)),
        ('"the hat of"', (3,)),
        ('"cat hat"', (4,)),
        ("cafe", (1,)),
        ("Café", (1,)),
        ("sci-fi", (1,)),
        ("fi-sci", ()),
        ("sci", (1,)),
        ("sc*", (1,)),
        ('"the ha"*', (3, 0)),
        ('"the ha"', ()),
        ("sci-f*", ()),
        ("space-od*", (5,)),
        ("od*", (5,)),
        ("odys*", (5,)),
        ("o*", ()),  # one letter is a word, not a beginning
        ("4*", ()),
        ("猫", (1,)),
        ("猫が", (1,)),
        ("が猫", ()),
        ("🐱", (2,)),
        ("كتاب", (2,)),
        ("کتاب", (2,)),
        ("کتاب های", (2,)),
        ("کتا*", (2,)),
        ("cats", ()),
        ("-cat", (4, 3, 1, 0)),
        ("NOT cat", ()),
        ("cat OR hat", (4,)),
        ("search:cat", ()),
        ("!?", ()),
        ('""', ()),
        ("§n", ()),
        ("", (5, 4, 3, 2, 1, 0)),
        ("  ", (5, 4, 3, 2, 1, 0)),
        (None, (5, 4, 3, 2, 1, 0)),
    ],
)
async def test_what_is_found(shared: Database, text: str | None, found: tuple[int, ...]) -> None:
    """Words, rows of words and beginnings; case, accents and the writing of letters do not matter; newest first."""
    assert ids(shared, owner_id="ada", text=text) == numbers(*found)


async def test_too_many_words_are_refused(database: Database) -> None:
    """A question is bounded, in words and in what it asks for."""
    assert ids(database, owner_id=None, text="a " * MAX_WORDS) == []
    for asked in ({"text": "a " * (MAX_WORDS + 1)}, {"limit": 0}, {"limit": 201}):
        with pytest.raises(InvalidInput):
            await database.read(search, owner_id=None, **asked)


async def test_filters_are_combined(database: Database) -> None:
    """Model, tag, favourite and dates, with words and without."""
    added = [
        made(
            number,
            "a cat" if number % 2 else "a dog",
            model=f"m{number % 3}",
            tags=("best", "کتاب") if number % 4 == 0 else (),
            is_favourite=number % 5 == 0,
            owner_id="ada" if number < 25 else "bob",
        )
        for number in range(30)
    ]
    await database.run(add, added, NOW)

    def expected(**asked: Any) -> list[str]:
        return [
            picture.id
            for picture in reversed(added)
            if (asked.get("owner_id") in (None, picture.owner_id))
            and (asked.get("text") is None or asked["text"] in picture.prompt.split())
            and (asked.get("model") is None or asked["model"] == picture.model)
            and (asked.get("tag") is None or asked["tag"] in picture.tags)
            and (asked.get("favourite") is None or asked["favourite"] == picture.is_favourite)
            and (asked.get("since") is None or picture.created_at >= asked["since"])
            and (asked.get("until") is None or picture.created_at < asked["until"])
        ]

    choices: dict[str, list[Any]] = {
        "owner_id": ["ada", None],
        "text": [None, "cat"],
        "model": [None, "m1"],
        "tag": [None, "best", "bes", "کتاب"],
        "favourite": [None, True, False],
        "since": [None, added[6].created_at],
        "until": [None, added[20].created_at],
    }
    asked: list[dict[str, Any]] = [{}]
    for name, values in choices.items():
        asked = [{**one, name: value} for one in asked for value in values]
    found = {str(one): ids(database, **one) for one in asked}
    assert found == {str(one): expected(**one) for one in asked}
    assert any(found.values())


@pytest.mark.parametrize("few", [0, 4000])
@pytest.mark.parametrize("asked", [{}, {"text": "cat"}, {"text": '"a cat"'}, {"text": "kitte*"}, {"favourite": False}])
async def test_pages_follow_each_other(
    database: Database, few: int, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is on one page, also those of the same microsecond, and though others come meanwhile."""
    narrow(monkeypatch, few=few, window=7)
    same = [made(number, "a cat, a kitten", created_at=NOW, job_id="job", position=number) for number in range(8)]
    await database.run(add, same, NOW)
    await database.run(add, [made(number, "a cat, a kitten") for number in range(20, 40)], NOW)
    seen, place, pages = [], None, 0
    while pages == 0 or place is not None:
        page, place = await database.read(search, owner_id="ada", cursor=place, limit=3, **asked)
        seen += [picture.id for picture in page]
        await database.run(add, [made(1000 + pages, "a cat, a kitten")], NOW)
        pages += 1
    assert seen == numbers(*range(39, 19, -1), *range(7, -1, -1))
    assert pages == 10


@pytest.mark.parametrize("few", [0, 4000])
async def test_rare_words_behind_the_window_are_found(
    database: Database, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the newest pictures do not have is looked for in all."""
    narrow(monkeypatch, few=few, window=5)
    await database.run(add, [made(number, "old hat" if number < 3 else "new hat") for number in range(30)], NOW)
    for text in ("old", "ol*", "hat old", '"old ha"*'):
        assert ids(database, owner_id="ada", text=text) == numbers(2, 1, 0)
    assert ids(database, owner_id="ada", text='"old hat"', limit=2) == numbers(2, 1)
    assert len(ids(database, owner_id="ada", text="hat")) == 30


async def test_a_change_is_found_at_once(database: Database, gallery: Callable[..., list[str]]) -> None:
    """Tags and favourites can be searched for from the moment they are set, and no longer when they are taken away."""
    changed = await database.run(
        change, "img_0", "ada", tags=[" a ", "b", "a"], is_favourite=True, actor=SYSTEM, at=LATER
    )
    assert (changed.tags, changed.is_favourite) == (("a", "b"), True)
    assert await database.read(get, "img_0", "ada") == changed
    assert gallery("cat", tag="a", favourite=True) == gallery(tag="b") == numbers(0)
    assert gallery("cat", favourite=False) == numbers(4, 3, 1)
    await database.run(change, "img_0", "ada", tags=(), is_favourite=None, actor=SYSTEM, at=LATER)
    assert gallery(tag="a") == []
    assert gallery(favourite=True) == gallery("in", favourite=True) == numbers(0)
    log = await database.read(entries, object_id="img_0", limit=9)
    assert [(entry.action, entry.after["tags"]) for entry in log] == [
        ("images.change", []),
        ("images.change", ["a", "b"]),
    ]
    assert "hat" not in str(log)


@pytest.mark.parametrize("tags", [["x" * 65], [""], ["  "], [str(number) for number in range(33)]])
async def test_tags_are_bounded(database: Database, gallery: Callable[..., list[str]], tags: list[str]) -> None:
    """Empty, long and many ones are refused, and nothing is changed."""
    with pytest.raises(InvalidInput):
        await database.run(change, "img_0", "ada", tags=tags, is_favourite=True, actor=SYSTEM, at=LATER)
    assert gallery(favourite=True) == []


async def test_a_removed_picture_leaves_nothing(database: Database, gallery: Callable[..., list[str]]) -> None:
    """Its row, its words and its hold on blobs are gone; the quota is free; the log says who did it."""
    assert await database.read(links.usage, "ada") == 6 * 110
    await database.run(remove, "img_0", "ada", SYSTEM, LATER)
    with pytest.raises(PictureNotFound):
        await database.read(get, "img_0", "ada")
    assert gallery("cat") == numbers(4, 3, 1)
    assert await database.read(links.usage, "ada") == 5 * 110
    assert await database.run(forget_unreferenced, LATER) == 2
    gone = made(0)
    assert await database.read(recorded, [gone.digest, gone.thumb_digest, made(1).digest]) == {made(1).digest}
    log = await database.read(entries, object_id="img_0", limit=9)
    assert [(entry.action, entry.before["digest"]) for entry in log] == [("images.remove", gone.digest)]


async def test_retention_spares_favourites(database: Database) -> None:
    """The oldest go first, a batch at a time, with their words and blobs; favourites and what is newer stay."""
    added = [made(number, "a cat", is_favourite=number % 4 == 0) for number in range(12)]
    await database.run(add, added, NOW)
    before = added[8].created_at
    assert await database.run(prune, before, 4) == 4
    assert ids(database, owner_id="ada", text="cat") == numbers(11, 10, 9, 8, 7, 6, 4, 0)
    assert await database.run(prune, before, 4) == 2
    assert await database.run(prune, before, 4) == 0
    assert ids(database, owner_id="ada", text="cat") == ids(database, owner_id="ada") == numbers(11, 10, 9, 8, 4, 0)
    assert await database.read(links.usage, "ada") == 6 * 110


async def test_a_picture_needs_its_blobs_kept(database: Database) -> None:
    """The collector leaves what a picture names, however old it is."""
    await database.run(add, [made(1)], NOW)
    assert await database.run(forget_unreferenced, LATER) == 0


def test_a_restored_gallery_is_searched(database: Database, tmp_path: Path) -> None:
    """The words are no part of a backup, and are there after it."""
    database.run_sync(add, [made(number, prompt) for number, prompt in enumerate(PROMPTS)], NOW)
    backup(database, tmp_path / "blobs", tmp_path / "backup", now=NOW, version="1")
    restored = open_sqlite(tmp_path / "restored.db")
    restore(tmp_path / "backup", restored, tmp_path / "other")
    assert ids(restored, owner_id="ada", text="hat") == numbers(4, 3, 0)
    restored.run_sync(remove, "img_3", "ada", SYSTEM, LATER)
    assert ids(restored, owner_id="ada", text="hat") == numbers(4, 0)
    restored.close_sync()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)], scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with PROMPTS that nothing changes, for many examples."""
    from serai.storage.connect import open_postgresql

    if request.param == "sqlite":
        from serai.storage.schema import upgrade

        opened = open_sqlite(tmp_path_factory.mktemp("gallery") / "serai.db")
        upgrade(opened)
    else:
        server = request.getfixturevalue("postgres_server")
        opened = open_postgresql(server.create("gallery", template="template_serai"), pool_size=2, listen=False)
    opened.run_sync(add, [made(number, prompt) for number, prompt in enumerate(PROMPTS)], NOW)
    yield opened
    opened.close_sync()


PIECES = [
    "cat",
    "hat",
    '"',
    "*",
    "(",
    ")",
    "AND",
    "NEAR",
    ":",
    "^",
    "-",
    "+",
    "'",
    "\\",
    "%",
    "_",
    "&",
    "|",
    "!",
    "<->",
    "猫",
    " ",
]


@settings(deadline=None, max_examples=150)
@given(text=st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_any_text_is_a_question(shared: Database, text: str) -> None:
    """Whatever is typed finds or does not find; every term of what is found stands in it."""
    try:
        found, _ = shared.read_sync(search, owner_id="ada", text=text)
    except InvalidInput:  # a surrogate cannot be a text of the database, nor can a question have too many words
        return
    for picture in found:
        spaced = f" {' '.join(words_of(picture.prompt))} "
        for term in terms_of(text):
            assert f" {' '.join(term.words)}{'' if term.is_prefix else ' '}" in spaced


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_words_are_what_both_databases_can_hold(text: str) -> None:
    """No spaces, quotes or signs, nothing empty or long; the words of the words are the same."""
    words = words_of(text)
    assert all(0 < len(word) <= 64 and not set(word) & set(" '\"\\*:&|!()<>%_§") for word in words)
    assert not any(word.startswith(mark("", "")[:1]) for word in words)
    assert words_of(" ".join(words)) == words


async def test_the_order_needs_no_sorting(database: Database) -> None:
    """Both ways to the newest matches stop at the page's end: SQLite's plan sorts nothing."""
    if database.dialect == "postgresql":
        return
    plan = sa.text(
        "EXPLAIN QUERY PLAN SELECT rowid FROM picture_search "
        "WHERE picture_search MATCH 'cat' AND rowid < 9 ORDER BY rowid DESC LIMIT 50"
    )
    told = [row.detail for row in await database.read(lambda connection: connection.execute(plan).all())]
    assert told
    assert not any("TEMP B-TREE" in detail for detail in told)


async def test_pictures_of_the_same_moment_keep_their_order(database: Database) -> None:
    """The place is the time, moved on until it is free."""
    await database.run(add, [made(number, created_at=NOW, job_id="j", position=number) for number in range(3)], NOW)
    seqs = await database.read(lambda connection: list(connection.execute(sa.select(pictures.c.seq)).scalars()))
    assert sorted(seqs) == [min(seqs), min(seqs) + 1, min(seqs) + 2]
    assert ids(database, owner_id="ada") == numbers(2, 1, 0)
