"""How fast the gallery finds pictures among 1,000,000 of them, on SQLite and on PostgreSQL.

    python benchmarks/gallery.py [--rows 1000000] [--rounds 200] [--database sqlite postgresql] [--json FILE]

Prompts of 18 words follow Zipf's law; planted in them are words that are rare (20 rows), thin (0.1 %), mid
(0.5 %), seen (2 %) and common (10 %), and one that only the oldest tenth has. Half of the pictures are one
owner's, the rest is shared by 99 others. The goals, for a page of 50: rare and mid words below 50 ms, common
ones below 150 ms, the first page by date below 20 ms (95th percentile, in the server's thread, without HTTP).
`cpu_ms` is the mean of what a call takes of a core in this process, which on SQLite is all of it: a busy
machine does not change it much.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from serai.audit import SYSTEM  # noqa: E402 - needs the path above
from serai.images import store  # noqa: E402 - keeps the imports together
from serai.images.model import Picture  # noqa: E402 - keeps the imports together
from serai.images.store.gallery import row_of  # noqa: E402 - keeps the imports together
from serai.storage.connect import open_postgresql, open_sqlite  # noqa: E402 - keeps the imports together
from serai.storage.database import Connection, Database  # noqa: E402 - keeps the imports together
from serai.storage.schema import upgrade  # noqa: E402 - keeps the imports together
from serai.storage.tables.images import pictures  # noqa: E402 - keeps the imports together
from support.servers import PostgresServer, find_postgresql  # noqa: E402 - needs the path

BATCH = 20_000
VOCABULARY = 20_000
START = datetime(2025, 1, 1, tzinfo=UTC)
STEP = timedelta(seconds=30)
PLANTED = {"thin": (20, 0.001), "mid": (20, 0.005), "seen": (10, 0.02), "common": (10, 0.1)}
RARE, RARE_ROWS = 500, 20
DECISION = {
    "id": "dec_01K0000000000000000000000",
    "reason": "named",
    "model_id": "model-1",
    "version": "1.2.0",
    "candidates": [{"version": f"1.{number}.0", "engine": "diffusers", "device": "cuda:0"} for number in range(4)],
}
SETTINGS = {
    "width": 1024,
    "height": 1024,
    "num_images": 4,
    "num_inference_steps": 28,
    "guidance_scale": 7.5,
    "format": "png",
    "adapters": [],
}
GOALS = {"date": 20, "rare": 50, "mid": 50, "common": 150}


def words() -> list[str]:
    """Return a vocabulary whose beginnings are spread as those of a language are: 2 to 4 syllables each."""
    chance = random.Random(3)
    syllables = [one + other for one in "bcdfghklmnprstvz" for other in ("a", "e", "i", "o", "u", "an", "er")]
    found = {"".join(chance.choices(syllables, k=chance.randint(2, 4))): None for _ in range(VOCABULARY * 2)}
    return list(found)[:VOCABULARY]


def made(count: int, chance: random.Random) -> Iterator[Picture]:
    """Yield the pictures, the oldest first."""
    vocabulary = words()
    weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    rare: dict[int, list[str]] = {}
    for number in range(RARE):
        for row in chance.sample(range(count), min(RARE_ROWS, count)):
            rare.setdefault(row, []).append(f"rare{number}")
    base = Picture(
        id="",
        owner_id="",
        job_id="",
        position=0,
        model="",
        version="1.2.0",
        decision=DECISION,
        prompt="",
        negative_prompt="blurry, low quality, extra fingers, watermark, text",
        settings=SETTINGS,
        seed=0,
        width=1024,
        height=1024,
        format="png",
        digest="",
        size=1_500_000,
        thumb_digest="",
        thumb_size=9_000,
        generation_ms=4_000,
        created_at=START,
    )
    for row in range(count):
        told = chance.choices(vocabulary, cum_weights=weights, k=18)
        for name, (number, share) in PLANTED.items():
            told += [f"{name}{n}" for n in range(number) if chance.random() < share]
        told += rare.get(row, []) + ["early"] * (row < count // 10)
        chance.shuffle(told)
        yield replace(
            base,
            id=f"img_{row:026d}",
            owner_id="user_0" if chance.random() < 0.5 else f"user_{chance.randrange(1, 100)}",
            job_id=f"job_{row:026d}",
            model=f"model-{min(int(chance.expovariate(0.5)), 19)}",
            prompt=" ".join(told),
            seed=row,
            digest=f"{row:064x}",
            thumb_digest=f"{row + 2**32:064x}",
            created_at=START + row * STEP,
            tags=("best",) * (chance.random() < 0.001),
            is_favourite=chance.random() < 0.01,
        )


def load(database: Database, count: int) -> None:
    """Write the pictures' rows, without the blobs that nothing here asks for, in large transactions."""
    source = made(count, random.Random(7))
    search_index = next(index for index in pictures.indexes if index.name == "ix_pictures_search")
    is_sqlite = database.dialect == "sqlite"

    def batch(connection: Connection, rows: list[dict[str, Any]]) -> None:
        connection.execute(sa.insert(pictures), rows)
        if is_sqlite:
            connection.exec_driver_sql(
                "INSERT INTO picture_search(rowid, search) VALUES (?, ?)", [(row["seq"], row["search"]) for row in rows]
            )

    if not is_sqlite:
        database.run_sync(search_index.drop)
    while some := [row_of(picture) for picture in itertools.islice(source, BATCH)]:
        database.run_sync(batch, some)
    if not is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SET statement_timeout = 0"))
            connection.execute(sa.text("SET maintenance_work_mem = '512MB'"))
            search_index.create(connection)
            connection.execute(sa.text("VACUUM ANALYZE pictures"))  # as the server itself does after such a change


def questions(count: int, chance: random.Random) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Return what is asked: a name, the goal that holds for it, and the arguments of one call."""

    def word(name: str) -> str:
        return f"{name}{chance.randrange(RARE if name == 'rare' else PLANTED[name][0])}"

    def owner() -> str | None:
        return chance.choice((None, "user_0", f"user_{chance.randrange(1, 100)}"))

    def begun(letters: int) -> str:
        return chance.choice(vocabulary[:2000])[:letters]

    def moment() -> datetime:
        return START + chance.randrange(count // 10, count) * STEP

    def place() -> int:
        return int(moment().timestamp()) * 1_000_000

    small, vocabulary = "user_5", words()
    return {
        "first page, all owners": ("date", lambda: {"owner_id": None}),
        "first page, an owner": ("date", lambda: {"owner_id": owner()}),
        "deep page, an owner": ("date", lambda: {"owner_id": owner(), "cursor": place()}),
        "between two dates": ("date", lambda: {"owner_id": owner(), "until": moment(), "since": START}),
        "rare word": ("rare", lambda: {"owner_id": owner(), "text": word("rare")}),
        "no such word": ("rare", lambda: {"owner_id": owner(), "text": "missing"}),
        "word in 0.1 %": ("mid", lambda: {"owner_id": owner(), "text": word("thin")}),
        "word in 0.5 %": ("mid", lambda: {"owner_id": owner(), "text": word("mid")}),
        "rare and common word": ("mid", lambda: {"owner_id": owner(), "text": f"{word('mid')} {word('common')}"}),
        "word in 2 %": ("common", lambda: {"owner_id": owner(), "text": word("seen")}),
        "word in 10 %": ("common", lambda: {"owner_id": owner(), "text": word("common")}),
        "word in 10 %, deep page": ("common", lambda: {"owner_id": owner(), "text": word("common"), "cursor": place()}),
        "word in 10 %, owner of 0.5 %": ("common", lambda: {"owner_id": small, "text": word("common")}),
        "word in 10 %, rare model": ("common", lambda: {"owner_id": None, "text": word("common"), "model": "model-15"}),
        "two words in 10 %": ("common", lambda: {"owner_id": owner(), "text": f"{word('common')} {word('common')}"}),
        "phrase": (
            "common",
            lambda: {"owner_id": owner(), "text": f'"{chance.choice(vocabulary[:30])} {word("common")}"'},
        ),
        "beginning of 2 letters": ("common", lambda: {"owner_id": owner(), "text": f"{begun(2)}*"}),
        "beginning of 4 letters": ("common", lambda: {"owner_id": owner(), "text": f"{begun(4)}*"}),
        "beginning of 6 letters": ("common", lambda: {"owner_id": owner(), "text": f"{begun(6)}*"}),
        "beginning of common words": ("common", lambda: {"owner_id": owner(), "text": "commo*"}),
        "beginning of rare words": (
            "common",
            lambda: {"owner_id": owner(), "text": f"rare{chance.randrange(10, 50)}*"},
        ),
        "word of the oldest tenth": ("common", lambda: {"owner_id": owner(), "text": "early"}),
        "tag": ("mid", lambda: {"owner_id": owner(), "tag": "best"}),
        "favourites": ("mid", lambda: {"owner_id": owner(), "favourite": True}),
        "model": ("mid", lambda: {"owner_id": owner(), "model": f"model-{chance.randrange(20)}"}),
    }


def measure(database: Database, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each question."""
    figures: dict[str, dict[str, Any]] = {}
    for name, (goal, ask) in questions(count, random.Random(11)).items():
        calls = [partial(database.read_sync, store.search, **ask()) for _ in range(rounds)]
        found = [len(call()[0]) for call in calls[:5]]  # warms, too
        begun = time.process_time()
        row = quantiles([timed(call) for call in calls])
        row["cpu_ms"] = round(1000 * (time.process_time() - begun) / rounds, 2)
        figures[name] = {**row, "goal_ms": GOALS[goal], "met": row["p95_ms"] < GOALS[goal], "found": max(found)}
    at = START + count * STEP
    template = next(made(1, random.Random(1)))

    def changed(number: int) -> None:
        one = replace(template, id=f"new_{number}", job_id=f"new_{number}", created_at=at, digest=f"{number:064x}")
        database.run_sync(store.add, [one], at)
        database.run_sync(store.change, one.id, None, tags=["a"], is_favourite=True, actor=SYSTEM, at=at)
        database.run_sync(store.remove, one.id, None, SYSTEM, at)

    figures["add, tag, remove a picture"] = quantiles([timed(partial(changed, number)) for number in range(rounds)])
    return figures


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "p95_ms": round(1000 * ordered[len(ordered) * 95 // 100], 2),
    }


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Database]:
    """Open an empty database of the kind `name`; PostgreSQL on a server of its own with its durable defaults."""
    if name == "sqlite":
        database = open_sqlite(folder / "gallery.db")
        yield database
        database.close_sync()
        return
    if find_postgresql() is None:
        raise SystemExit("PostgreSQL's binaries are not installed (apt install postgresql)")
    folder.chmod(0o711)
    server = PostgresServer(folder / "postgres", options=("max_connections=60", "max_wal_size=4GB"))
    server.start()
    try:
        database = open_postgresql(server.create("gallery"), pool_size=4, timeout_s=600, listen=False)
        yield database
        database.close_sync()
    finally:
        server.stop()


def show(title: str, figures: dict[str, dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in figures.values() for name in row))
    print(f"\n{title}")
    print(" | ".join(["".ljust(30), *(name.rjust(8) for name in columns)]))
    for name, row in figures.items():
        print(" | ".join([name.ljust(30), *(str(row.get(column, "–")).rjust(8) for column in columns)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--database", nargs="+", choices=("sqlite", "postgresql"), default=("sqlite", "postgresql"))
    parser.add_argument("--folder", type=Path, help="where the databases lie; a temporary folder if left out")
    parser.add_argument("--json", type=Path, default=ROOT / "out/gallery.json")
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in options.database:
        with (
            tempfile.TemporaryDirectory(prefix="serai-bench-", dir=options.folder) as folder,
            opened(name, Path(folder)) as database,
        ):
            upgrade(database)
            loading = timed(partial(load, database, options.rows))
            found[name] = measure(database, options.rows, options.rounds)
            load_now = os.getloadavg()[0] / (os.cpu_count() or 1)
            title = f"{options.rows} pictures on {name}, written in {loading:.0f} s"
            show(f"{title}; the machine had {load_now:.1f} times as much to do as it has cores", found[name])
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"rows": options.rows, "databases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
