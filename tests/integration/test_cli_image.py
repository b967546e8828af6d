"""`serai image` against a running server whose model draws gradients."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from support.picture_api import PAINTER
from support.process import ServerProcess, environment, serving

DONE, REFUSED, WRONG_USAGE = 0, 1, 2
PATIENT_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("image") / "home", rate_limits="off", worker_threads=1) as running:
        with running.client() as client:
            made = client.post("/models", json={**PAINTER, "engine_options": {"step_s": 0.05}})
            assert made.status_code == 201, made.text
        yield running


def run(server: ServerProcess, *arguments: object, code: int = DONE) -> subprocess.CompletedProcess[str]:
    """Run the command as the server's admin; it must end with this code."""
    done = subprocess.run(
        [sys.executable, "-m", "serai", *map(str, arguments)],
        env=environment(url=server.url, api_key=server.admin_key),
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def opened(path: str | Path) -> Image.Image:
    """Return a picture that is read, and its file closed."""
    with Image.open(path) as picture:
        picture.load()
    return picture


def test_a_picture_is_saved_where_it_is_wanted(server: ServerProcess, tmp_path: Path) -> None:
    """The file is a picture of the size that was asked for; the line tells it, the seed and the version."""
    out = tmp_path / "fox.png"
    said = run(server, "image", "a fox", "-m", "painter", "--size", "64x32", "--seed", 5, "-o", out).stdout
    assert said.split("  ") == [str(out), "64×32, seed 5, painter@1.0.0\n"]
    assert opened(out).size == (64, 32)
    again = tmp_path / "again.png"
    run(server, "image", "a fox", "-m", "painter", "--size", "64x32", "--seed", 5, "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_several_go_into_a_folder(server: ServerProcess, tmp_path: Path) -> None:
    """Each under its id; for programs, as JSON with the files' names."""
    said = run(server, "--json", "image", "foxes", "-m", "painter", "-n", 2, "--format", "webp", "-o", tmp_path / "new")
    told = json.loads(said.stdout)["images"]
    assert [Path(one["file"]).name for one in told] == [f"{one['id']}.webp" for one in told]
    assert [opened(one["file"]).format for one in told] == ["WEBP", "WEBP"]


def test_a_file_is_what_its_name_says(server: ServerProcess, tmp_path: Path) -> None:
    """Several are numbered behind the name, and what was there is replaced."""
    (tmp_path / "fox-2.jpeg").write_text("old")
    said = run(server, "--json", "image", "foxes", "-m", "painter", "-n", 2, "-o", tmp_path / "fox.jpeg")
    files = [tmp_path / "fox-1.jpeg", tmp_path / "fox-2.jpeg"]
    assert [one["file"] for one in json.loads(said.stdout)["images"]] == [str(file) for file in files]
    assert [opened(file).format for file in files] == ["JPEG", "JPEG"]
    assert sorted(tmp_path.iterdir()) == files


def test_a_picture_starts_from_another(server: ServerProcess, tmp_path: Path) -> None:
    """It is uploaded first, and held by the job alone; what a mask leaves black stays."""
    start, mask, out = tmp_path / "start.png", tmp_path / "mask.png", tmp_path / "out.png"
    Image.new("RGB", (64, 64), (10, 200, 30)).save(start)
    white_right = Image.new("L", (64, 64), 0)
    white_right.paste(255, (32, 0, 64, 64))
    white_right.save(mask)
    options = ("--from", start, "--mask", mask, "--strength", 1, "-o", out)
    run(server, "image", "a fox", "-m", "painter", *options)
    made = opened(out)
    assert made.getpixel((4, 4)) == (10, 200, 30)
    assert made.getpixel((60, 32)) != (10, 200, 30)
    run(server, "image", "a fox", "-m", "painter", *options, "--steps", 9, code=REFUSED)
    run(server, "image", "a fox", "--from", tmp_path / "nothing.png", "-o", out, code=WRONG_USAGE)
    with server.client() as client:
        assert client.get("/files").json()["items"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--size", "big"), WRONG_USAGE, "WIDTHxHEIGHT"),
        (("--adapter", "ink=much"), WRONG_USAGE, "NAME=SCALE"),
        (("--size", "8x64"), REFUSED, "width"),
        (("--adapter", "oil"), REFUSED, "oil"),
        (("-m", "nobody"), REFUSED, "nobody"),
        (("--steps", "9"), REFUSED, "num_inference_steps"),
    ],
)
def test_what_cannot_be_made_is_told(
    server: ServerProcess, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    """The field, the bound or the name; and no file is left."""
    model = () if "-m" in arguments else ("-m", "painter")
    done = run(server, "image", "a fox", *model, *arguments, "-o", tmp_path / "none.png", code=code)
    assert told in done.stderr
    assert not (tmp_path / "none.png").exists()


def test_on_a_terminal_each_step_is_shown(server: ServerProcess, tmp_path: Path) -> None:
    """A bar counts the steps to the last one, then the file is told."""
    ours, theirs = pty.openpty()
    command = ["-m", "serai", "image", "a fox", "-m", "painter", "--steps", "8", "-o", str(tmp_path / "fox.png")]
    with subprocess.Popen(
        [sys.executable, *command],
        env={**environment(url=server.url, api_key=server.admin_key), "TERM": "xterm", "COLUMNS": "200"},
        stdout=theirs,
        stderr=theirs,
    ) as drawing:
        os.close(theirs)
        seen = _to_the_end(ours)
        assert drawing.wait(PATIENT_S) == DONE
    os.close(ours)
    assert "generating" in seen
    assert "8/8" in seen
    assert "fox.png" in seen


def _to_the_end(terminal: int) -> str:
    seen = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other side is closed: so Linux says it
            break
        if not piece:
            break
        seen += piece
    return seen.decode("utf-8", "replace")
