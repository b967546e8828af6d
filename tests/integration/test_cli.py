"""The command line against a real server: users, keys, audit, doctor, backups, and how each command ends."""

import json
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai import __version__
from serai.auth.credentials import is_key
from serai.cli.main import main
from support.process import ServerProcess, environment, run_serve, serving

DONE, REFUSED, WRONG_USAGE, UNREACHABLE, MISCONFIGURED = 0, 1, 2, 3, 4
"""What the docstring of `serai.cli.main` promises."""

Serai = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One `serai serve` on a free port."""
    with serving(tmp_path_factory.mktemp("cli") / "home", rate_limits="off") as running:
        yield running


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Serai:
    """Run the command `serai` with these arguments, in an environment without settings, and a home of its own."""
    for name in environment():
        monkeypatch.setenv(name, environment()[name])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SERAI_HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["serai", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def serai(server: ServerProcess, command: Serai, monkeypatch: pytest.MonkeyPatch) -> Serai:
    """The same, as the admin of the running server."""
    monkeypatch.setenv("SERAI_URL", server.url)
    monkeypatch.setenv("SERAI_API_KEY", server.admin_key)
    return command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_on_another_port_is_found(command: Serai, tmp_path: Path) -> None:
    """Who runs it on this machine needs neither its URL nor its key; when it has ended, nothing points there."""
    home = tmp_path / "own"
    with serving(home) as running:
        assert command("models", "list").code == DONE
        running.terminate()
        running.wait()
    assert not (home / "server.url").exists()


class TestUsersAndKeys:
    """`serai users` and `serai keys`."""

    def test_from_a_user_to_a_key_that_works_to_one_that_does_not(self, serai: Serai) -> None:
        """Create, narrow, use, revoke, disable, delete; each command prints what it did."""
        user = serai("--json", "users", "create", "ada", "--role", "moderator").json()
        made = serai(
            "keys", "create", "laptop", "--user", user["id"], "--role", "user", "--scope", "keys", "--scope", "users"
        )
        key = made.out.strip()
        assert (made.code, is_key(key)) == (DONE, True)
        listed = serai("--api-key", key, "--json", "keys", "list").json()["items"]
        assert [(k["name"], k["role"], k["scopes"]) for k in listed] == [("laptop", "user", ["keys", "users"])]
        refused = serai("--api-key", key, "users", "list")
        assert (refused.code, refused.out) == (REFUSED, "")
        assert "serai: This call needs the role admin; yours is user. [FORBIDDEN]\nhint: " in refused.err
        assert serai("keys", "revoke", listed[0]["id"]).code == DONE
        gone = serai("--api-key", key, "keys", "list")
        assert (gone.code, "[UNAUTHENTICATED]" in gone.err) == (REFUSED, True)
        assert serai("--json", "users", "update", user["id"], "--disable").json()["disabled"] is True
        assert serai("--json", "users", "update", user["id"], "--enable", "--role", "viewer").json()["role"] == "viewer"
        assert serai("users", "delete", user["id"]).code == DONE
        assert user["id"] not in serai("users", "list").out

    def test_tables_are_for_people_and_json_is_for_programs(self, serai: Serai) -> None:
        """The same facts in both; in a pipe nothing is cut or folded."""
        rows = serai("--json", "users", "list").json()["items"]
        table = serai("users", "list").out
        assert table.split()[:6] == ["id", "name", "role", "has_password", "disabled", "created_at"]
        for row in rows:
            assert row["id"] in table
            assert row["created_at"] in table

    def test_lists_are_whole(self, serai: Serai, server: ServerProcess) -> None:
        """More than a page of keys: all of them."""
        with server.client() as http:
            for number in range(205):
                assert http.post("/keys", json={"name": f"many-{number}"}).status_code == 201
        names = [key["name"] for key in serai("--json", "keys", "list").json()["items"]]
        assert [name for name in names if name.startswith("many-")] == [f"many-{number}" for number in range(205)]

    def test_an_expiry_is_passed_on(self, serai: Serai) -> None:
        """Seconds from now; the answer of --json has the key and when it ends."""
        made = serai("--json", "keys", "create", "short", "--expires-in-s", "60").json()
        assert is_key(made["key"])
        assert made["expires_at"] is not None


class TestSecrets:
    """`serai secrets`."""

    def given(self, server: ServerProcess, *arguments: str, value: str = "") -> "subprocess.CompletedProcess[str]":
        """Run the command with `value` on its standard input."""
        told = environment(url=server.url, api_key=server.admin_key)
        command = [sys.executable, "-m", "serai", *arguments]
        return subprocess.run(command, input=value, env=told, capture_output=True, text=True, check=False, timeout=60)

    def test_a_secret_is_set_listed_and_deleted(self, server: ServerProcess, serai: Serai) -> None:
        """Its value comes from stdin without the line's end, and is in nothing that is printed afterwards."""
        origins = ("--origin", "https://one.example", "--origin", "https://two.example")
        made = self.given(server, "secrets", "set", "token", *origins, value="sk-hidden\n")
        assert (made.returncode, "sk-hidden" in made.stdout + made.stderr) == (DONE, False), made.stderr
        assert serai("secrets", "set", "token", "--origin", "https://one.example", "--keep-value").code == DONE
        (listed,) = serai("--json", "secrets", "list").json()["items"]
        assert (listed["name"], listed["origins"], listed["source"]) == ("token", ["https://one.example"], "store")
        assert not any("sk-hidden" in str(value) for value in listed.values())
        assert "https://one.example" in serai("secrets", "list").out
        assert serai("secrets", "delete", "token").out == "deleted  token\n"
        assert serai("secrets", "list").out == "none\n"
        gone = serai("secrets", "delete", "token")
        assert (gone.code, "[SECRET_NOT_FOUND]" in gone.err) == (REFUSED, True)

    def test_a_secret_is_never_an_argument(self, server: ServerProcess, serai: Serai) -> None:
        """Other processes can read those; nothing on stdin, and no origin, are wrong usage."""
        assert serai("secrets", "set", "token", "sk-shown", "--origin", "https://one.example").code == WRONG_USAGE
        assert serai("secrets", "set", "token", "--keep-value").code == WRONG_USAGE
        empty = self.given(server, "secrets", "set", "token", "--origin", "https://one.example", value="\n")
        assert (empty.returncode, "holds no value" in empty.stderr) == (WRONG_USAGE, True)


class TestAudit:
    """`serai audit`."""

    def test_it_lists_and_verifies(self, serai: Serai) -> None:
        """What was just done is on top; the chain holds."""
        user = serai("--json", "users", "create", "for-the-log").json()
        top = serai("--json", "audit", "list", "--limit", "1").json()["items"][0]
        assert (top["action"], top["object_id"]) == ("users.create", user["id"])
        found = serai("--json", "audit", "list", "--kind", "user", "--object", user["id"]).json()["items"]
        assert [entry["seq"] for entry in found] == [top["seq"]]
        verified = serai("audit", "verify")
        assert (verified.code, verified.out.split()[:2]) == (DONE, ["ok", "True"])

    def test_a_kept_head_notices_a_cut(self, serai: Serai, tmp_path: Path) -> None:
        """`head` prints what `verify --head` takes; a head that is not on the log ends with exit code 1."""
        kept = tmp_path / "head.json"
        kept.write_text(serai("audit", "head").out)
        assert serai("audit", "verify", "--head", str(kept)).code == DONE
        kept.write_text(json.dumps({**json.loads(kept.read_text()), "seq": 10**6}))
        cut = serai("audit", "verify", "--head", str(kept))
        assert cut.code == REFUSED
        assert "before the kept head 1000000" in cut.out

    @pytest.mark.parametrize("content", [None, "", "no json", "{"])
    def test_a_file_that_holds_no_head_is_wrong_usage(self, serai: Serai, tmp_path: Path, content: str | None) -> None:
        """Missing, empty or something else: exit code 2 and one sentence, no traceback."""
        kept = tmp_path / "head.json"
        if content is not None:
            kept.write_text(content)
        wrong = serai("audit", "verify", "--head", str(kept))
        assert wrong.code == WRONG_USAGE
        assert "Traceback" not in wrong.err
        assert "--head" in wrong.err


class TestHowItEnds:
    """Exit codes, messages, and where the server and the key come from."""

    def test_version_and_help(self, command: Serai) -> None:
        """Both are there for the program and, the help, for every command."""
        assert command("--version").out == f"serai {__version__}\n"
        for arguments in ((), ("serve",), ("doctor",), ("keys",), ("users",), ("audit",), ("db",), ("keys", "create")):
            helped = command(*arguments, "--help")
            assert (helped.code, helped.err) == (DONE, "")
            assert "Usage: " in helped.out

    @pytest.mark.parametrize(
        "arguments",
        [
            ["nonsense"],
            ["keys", "nonsense"],
            ["keys", "create"],
            ["keys", "create", "a", "b"],
            ["keys", "create", "a", "--colour", "red"],
            ["keys", "create", "a", "--expires-in-s", "soon"],
            ["audit", "list", "--limit", "0"],
            ["--jsn", "keys", "list"],
        ],
    )
    def test_wrong_usage_is_2(self, command: Serai, arguments: list[str]) -> None:
        """Before any server is asked, with the usage on stderr."""
        wrong = command(*arguments)
        assert (wrong.code, wrong.out) == (WRONG_USAGE, "")
        assert "Usage:" in wrong.err

    def test_a_refusal_is_1(self, serai: Serai) -> None:
        """The server's words, code and hint; an unknown key, a conflict, a wrong value."""
        for arguments, code in (
            (["keys", "revoke", "key_none"], "KEY_NOT_FOUND"),
            (["users", "create", "admin"], "USER_ALREADY_EXISTS"),
            (["users", "create", "Not A Name"], "INVALID_INPUT"),
            (["keys", "create", "a", "--role", "owner"], "INVALID_INPUT"),
            (["--api-key", "sk-serai-wrong", "keys", "list"], "UNAUTHENTICATED"),
        ):
            refused = serai(*arguments)
            assert (refused.code, refused.out) == (REFUSED, "")
            assert f"[{code}]" in refused.err

    def test_no_server_is_3(self, command: Serai) -> None:
        """A port that nobody listens on, and the hint how to start one."""
        gone = command("--url", f"http://127.0.0.1:{free_port()}", "keys", "list")
        assert gone.code == UNREACHABLE
        assert "No server answers" in gone.err
        assert "serai serve" in gone.err

    def test_a_wrong_configuration_is_4(self, command: Serai, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whichever command reads it: one line that names key, value and what is allowed."""
        assert command("--url", "http://127.0.0.1:port", "keys", "list").code == MISCONFIGURED
        monkeypatch.setenv("SERAI_PORT", "99999")
        for arguments in (["serve"], ["keys", "list"], ["db", "upgrade"]):
            wrong = command(*arguments)
            assert wrong.code == MISCONFIGURED
            assert "serai: port = '99999' is not allowed" in wrong.err

    def test_without_a_key_it_says_how_to_get_one(self, serai: Serai, monkeypatch: pytest.MonkeyPatch) -> None:
        """No key at all is a refusal with a hint."""
        monkeypatch.delenv("SERAI_API_KEY")
        refused = serai("keys", "list")
        assert refused.code == REFUSED
        assert "serai keys create" in refused.err

    def test_beside_its_server_it_needs_nothing(
        self, server: ServerProcess, command: Serai, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the server's home and port in the settings, the key of the first start is found."""
        monkeypatch.setenv("SERAI_HOME", str(server.home))
        monkeypatch.setenv("SERAI_PORT", str(server.port))
        assert command("keys", "list").code == DONE


class TestServe:
    """`serai serve` as a process."""

    def test_the_first_start_says_where_it_is_and_where_the_key_lies(self, server: ServerProcess) -> None:
        """Never the key itself; the key's file is private."""
        said = "".join(server.lines)
        assert f"Serai is ready at {server.url} (admin key: {server.home / 'admin.key'})" in said
        assert server.admin_key not in said
        assert stat.S_IMODE((server.home / "admin.key").stat().st_mode) == 0o600

    def test_a_second_one_on_the_same_home_does_not_start(self, server: ServerProcess) -> None:
        """Exit code 4, naming the process that has it; the first goes on."""
        second = run_serve("--home", str(server.home), "--port", "0")
        assert second.returncode == MISCONFIGURED
        assert f"Process {server.pid} already serves from this home" in second.stderr
        assert server.alive()

    def test_a_port_that_is_taken_is_told(self, server: ServerProcess, tmp_path: Path) -> None:
        """Exit code 4 and the hint to choose another."""
        second = run_serve("--home", str(tmp_path / "home"), "--port", str(server.port))
        assert second.returncode == MISCONFIGURED
        assert f"Cannot listen on 127.0.0.1:{server.port}" in second.stderr
        assert "--port" in second.stderr

    def test_without_auth_it_does_not_listen_for_others(self, tmp_path: Path) -> None:
        """auth = off on a public address: exit code 4 before anything is opened."""
        refused = run_serve("--home", str(tmp_path / "home"), "--host", "0.0.0.0", "--port", "0", auth="off")
        assert refused.returncode == MISCONFIGURED
        assert "auth = 'off' is not allowed with host = '0.0.0.0'" in refused.stderr
        assert not (tmp_path / "home").exists()

    def test_sigterm_ends_it_in_good_order(self, tmp_path: Path) -> None:
        """It stops by itself; the home is free and whole for the next."""
        with serving(tmp_path / "home") as one:
            one.terminate()
            assert one.wait() in (0, -15)
        with sqlite3.connect(tmp_path / "home" / "serai.db") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    def test_it_is_quick_to_say_its_name(self) -> None:
        """`--help` imports neither the server nor a web framework."""
        code = (
            "import sys; sys.argv = ['serai', '--help']\n"
            "from serai.cli.main import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "print([m for m in ('fastapi', 'sqlalchemy', 'uvicorn', 'httpx', 'alembic') if m in sys.modules])"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
        )
        assert told.stdout.splitlines()[-1] == "[]"


class TestDoctor:
    """`serai doctor`."""

    def test_on_a_good_machine_it_finds_nothing_that_would_not_work(self, command: Serai) -> None:
        """Each finding has its check and, unless it is fine, its remedy."""
        told = command("--json", "doctor")
        assert told.code == DONE
        findings = {finding["check"]: finding for finding in told.json()}
        assert {"machine", "settings", "home", "disk", "port", "database", "redis"} <= set(findings)
        for finding in findings.values():
            assert finding["status"] in ("ok", "warning")
            assert finding["status"] == "ok" or finding["remedy"]

    def test_beside_a_server_it_says_so(
        self, server: ServerProcess, command: Serai, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The port is in use, and the database has the schema of this version."""
        monkeypatch.setenv("SERAI_PORT", str(server.port))
        findings = {f["check"]: f for f in command("--json", "doctor", "--home", str(server.home)).json()}
        assert findings["port"]["status"] == "warning"
        assert findings["database"]["status"] == "ok"

    @pytest.mark.parametrize(
        ("variable", "value", "check"),
        [
            ("SERAI_PORT", "http", "settings"),
            ("SERAI_MIN_FREE_DISK_BYTES", str(2**49), "disk"),
            ("SERAI_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none", "database"),
            ("SERAI_REDIS_URL", "redis://127.0.0.1:1/0", "redis"),
        ],
    )
    def test_what_would_not_work_is_1(
        self, command: Serai, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, check: str
    ) -> None:
        """The finding that failed is named."""
        monkeypatch.setenv(variable, value)
        monkeypatch.setenv("SERAI_DATABASE_TIMEOUT_S", "2")
        told = command("--json", "doctor")
        assert told.code == REFUSED
        assert [finding["check"] for finding in told.json() if finding["status"] == "failed"] == [check]

    def test_a_home_that_others_can_write_is_found(self, command: Serai, tmp_path: Path) -> None:
        """As the server would refuse it."""
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        told = command("--json", "doctor", "--home", str(tmp_path / "open"))
        assert [finding["check"] for finding in told.json() if finding["status"] == "failed"] == ["home"]


class TestDatabase:
    """`serai db`."""

    def test_a_backup_of_a_running_server_comes_back_elsewhere(
        self, server: ServerProcess, serai: Serai, tmp_path: Path
    ) -> None:
        """Users, keys and the whole audit log are in a new home; the old admin key opens the new server."""
        serai("users", "create", "in-the-backup")
        saved = serai("--json", "db", "backup", str(tmp_path / "backup"), "--home", str(server.home))
        assert (saved.code, saved.json()["missing_blobs"]) == (DONE, [])
        new = tmp_path / "new"
        restored = serai("--json", "db", "restore", str(tmp_path / "backup"), "--home", str(new)).json()
        assert restored["rows"] == saved.json()["rows"]
        with serving(new) as other, other.client(server.admin_key) as http:
            assert "in-the-backup" in [user["name"] for user in http.get("/users?limit=200").json()["items"]]
            assert http.post("/audit/verify").json()["ok"] is True
            assert not (new / "admin.key").exists()

    def test_a_backup_goes_nowhere_where_something_is(
        self, server: ServerProcess, command: Serai, tmp_path: Path
    ) -> None:
        """A folder that is not empty is refused and left alone."""
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").write_text("mine")
        refused = command("db", "backup", str(tmp_path / "there"), "--home", str(server.home))
        assert (refused.code, "not empty" in refused.err) == (REFUSED, True)
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]

    def test_a_restore_goes_into_nothing_that_is_used(
        self, server: ServerProcess, command: Serai, tmp_path: Path
    ) -> None:
        """Neither into the home of a running server (4) nor into a database with rows (1), nor from no backup (1)."""
        assert command("db", "backup", str(tmp_path / "backup"), "--home", str(server.home)).code == DONE
        running = command("db", "restore", str(tmp_path / "backup"), "--home", str(server.home))
        assert (running.code, "already serves from this home" in running.err) == (MISCONFIGURED, True)
        assert command("db", "restore", str(tmp_path / "backup"), "--home", str(tmp_path / "new")).code == DONE
        again = command("db", "restore", str(tmp_path / "backup"), "--home", str(tmp_path / "new"))
        assert (again.code, "it has rows" in again.err) == (REFUSED, True)
        nothing = command("db", "restore", str(tmp_path / "none"), "--home", str(tmp_path / "newer"))
        assert (nothing.code, "no backup" in nothing.err) == (REFUSED, True)

    def test_the_schema_goes_up_and_down(self, command: Serai, tmp_path: Path) -> None:
        """Each prints from where to where; a step that does not exist is refused."""
        home = ["--home", str(tmp_path / "schema")]
        up = command("--json", "db", "upgrade", *home).json()
        assert up["from"] is None
        down = command("--json", "db", "downgrade", "0001", *home).json()
        assert down == {"from": up["to"], "to": "0001"}
        assert command("--json", "db", "upgrade", *home).json() == {"from": "0001", "to": up["to"]}
        wrong = command("db", "downgrade", "no-such-step", *home)
        assert wrong.code == REFUSED
        assert "Traceback" not in wrong.err


def test_a_lost_admin_key_is_made_anew_by_who_owns_the_home(tmp_path: Path) -> None:
    """`keys recover` refuses while the server runs; with the server stopped, its key is an admin's."""
    home = tmp_path / "home"
    command = [sys.executable, "-m", "serai", "keys", "recover", "--home", str(home)]
    with serving(home) as server:
        lost = server.admin_key
        refused = subprocess.run(command, check=False, capture_output=True, text=True, env=environment())
        assert refused.returncode == 4, refused.stderr
        server.terminate()
        server.wait()
    recovered = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    assert "admin.key" in recovered.stdout
    with serving(home) as server:
        assert server.admin_key != lost
        with server.client() as client:
            assert client.get("/whoami").json()["role"] == "admin"
            assert client.post("/audit/verify").json()["ok"] is True
