"""Where `serai image` writes: judged before anything is asked for, so that no picture is drawn for nothing."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serai.cli.main import app
from serai.errors import UpstreamFailed

WRONG_USAGE = 2


def asked(*arguments: object) -> Result:
    """Run the command where no server is: what is right gets as far as looking for one."""
    options = ["--url", "http://127.0.0.1:9", "image", "a fox"]
    return CliRunner().invoke(app, [*options, *map(str, arguments)])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg", "a.JPEG", "a.webp", "folder", "new/folder"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_can_be_written_is_asked_for(tmp_path: Path, name: str, count: int) -> None:
    """Files of the formats there are, and folders, there already or not; nothing is made before a picture is."""
    (tmp_path / "folder").mkdir()
    assert isinstance(asked("-o", tmp_path / name, "-n", count).exception, UpstreamFailed)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-o", "a.gif"), ".gif"),
        (("-o", "a.bmp"), ".png, .jpg, .jpeg, .webp"),
        (("-o", "a.png", "--format", "webp"), "a.png would hold png"),
        (("-o", "none/a.png"), "no folder none"),
        (("-o", "file"), "file is no folder"),
        (("-o", "file/pictures"), "file is no folder"),
        (("-o", "taken.png", "-n", "2"), "taken-2.png is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    """By name, and before a server is looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "taken-2.png").mkdir()
    done = asked(*arguments)
    assert done.exit_code == WRONG_USAGE
    assert told in done.output


@pytest.mark.skipif(os.geteuid() == 0, reason="NOT TESTED: the superuser may write everywhere")
@pytest.mark.parametrize("name", ["a.png", "pictures", "old.png"])
def test_what_may_not_be_written_is_refused(tmp_path: Path, name: str) -> None:
    """Neither into a folder of others, nor over a file of theirs."""
    (tmp_path / "old.png").touch(mode=0o400)
    tmp_path.chmod(0o500)
    done = asked("-o", tmp_path / name)
    assert done.exit_code == WRONG_USAGE
    assert "may not be written" in done.output
