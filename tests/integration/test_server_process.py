"""`serai serve` as a process: what it refuses to start as, how it starts again, how it ends."""

import io
import json
import re
import signal
import stat
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serai.errors import ConfigurationError
from serai.settings import load
from support.process import ServerProcess, connect, exchange, head, receive, run_serve, send, serving
from support.scrub import check_error
from support.servers import free_port
from support.waiting import wait_until

MISCONFIGURED = 4
MIB = 2**20


def picture(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 60).save(out, "PNG")
    return out.getvalue()


def test_a_server_that_does_not_start_leaves_nothing_open(tmp_path: Path) -> None:
    """The tests' own `serving` says why it did not, and closes the pipe that it read that from."""
    opened = len(list(Path("/proc/self/fd").iterdir()))
    command = (sys.executable, "-c", "import sys; sys.exit('out of order')")
    with pytest.raises(RuntimeError, match="out of order") as caught, serving(tmp_path, command=command):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    assert caught.value


def test_without_auth_no_address_but_loopback_is_listened_on(tmp_path: Path) -> None:
    """The start ends with an exit code, names key, value and what is allowed, and has made nothing."""
    ended = run_serve("--host", "0.0.0.0", "--port", "0", "--home", str(tmp_path / "home"), auth="off")
    assert ended.returncode == MISCONFIGURED
    for words in ("auth = 'off'", "host = '0.0.0.0'", "loopback"):
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "home").exists()
    for host in ("::", "192.0.2.1", "example.test", "127.0.0.1.evil.test", "localhost.", "0x7f.1"):
        with pytest.raises(ConfigurationError, match=re.escape(f"host = '{host}'")):
            load({"SERAI_AUTH": "off", "SERAI_HOST": host, "SERAI_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prot": "1"}, ["SERAI_PROT is not a setting", "Did you mean port?"]),
        ({"port": "99999"}, ["port = '99999' is not allowed", "65535"]),
        ({"auth": "maybe"}, ["auth = 'maybe' is not allowed", "'on' or 'off'"]),
        ({"auth": "off", "profile": "production"}, ["auth = 'off'", "production"]),
        ({"max_json_bytes": "many"}, ["max_json_bytes = 'many' is not allowed", "integer"]),
        ({"cors_origins": "*"}, ["cors_origins", "https://host"]),
        ({"trusted_proxies": "everybody"}, ["trusted_proxies", "everybody"]),
        ({"jwt_secret": "canary-short"}, ["jwt_secret = a secret is not allowed", "32"]),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, settings: dict[str, str], named: list[str]) -> None:
    """The message names the key, the value unless it is a secret, and what is allowed."""
    environment = {f"SERAI_{name.upper()}": value for name, value in settings.items()}
    with pytest.raises(ConfigurationError) as refused:
        load({**environment, "SERAI_HOME": str(tmp_path)})
    for words in named:
        assert words in refused.value.message
    assert "canary" not in refused.value.message


def test_a_wrong_setting_ends_the_process_with_its_own_code(tmp_path: Path) -> None:
    """In the environment and in the file: one sentence and a hint, no trace, exit code 4, nothing made."""
    file = tmp_path / "serai.toml"
    file.write_text('portt = 1\njwt_secret = "canary of forty characters, which is enough"')
    home = tmp_path / "home"
    for ended, words in (
        (run_serve("--home", str(home), prot="1"), "serai: SERAI_PROT is not a setting. Did you mean port?"),
        (run_serve("--home", str(home), "--config", str(file)), "serai: jwt_secret: a secret does not belong in"),
    ):
        assert ended.returncode == MISCONFIGURED
        assert ended.stderr.startswith(words)
        assert "hint: " in ended.stderr
        assert len(ended.stderr.splitlines()) == 2
        assert "canary" not in ended.stderr
    assert not home.exists()


def test_what_is_missing_at_the_start_is_said_in_words(tmp_path: Path) -> None:
    """A database that is not there, or a port that is taken, ends the start with a sentence and a hint."""
    url = f"postgresql://canary:password@127.0.0.1:{free_port()}/none"
    ended = run_serve("--home", str(tmp_path / "a"), "--port", "0", database_url=url)
    assert ended.returncode not in (0, None)
    assert ended.stderr.splitlines()[-2].startswith("serai: The database does not answer."), ended.stderr
    assert "canary:password" not in ended.stderr
    with serving(tmp_path / "b") as first:
        ended = run_serve("--home", str(tmp_path / "c"), "--port", str(first.port))
        assert (ended.returncode, "Cannot listen" in ended.stderr) == (MISCONFIGURED, True), ended.stderr


def test_starting_again_changes_nothing(tmp_path: Path) -> None:
    """The same admin, key, secrets, users and files; a token from before the restart still counts."""
    home, body = tmp_path / "home", picture()
    with serving(home) as first:
        key = first.admin_key
        with first.client() as client:
            token = client.post("/tokens").json()["token"]
            stored = client.post("/files", content=body).json()
            users = client.get("/users").json()
            log_head = client.get("/audit/head").json()
        files = {path.name: path.read_bytes() for path in home.iterdir() if path.suffix == ".key"}
        first.terminate()
        assert first.wait() == 0
    assert set(files) >= {"admin.key", "jwt.key", "secrets.key"}
    for name in files:
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    with serving(home) as second:
        assert {path.name: path.read_bytes() for path in home.iterdir() if path.suffix == ".key"} == files
        assert second.admin_key == key
        with second.client(token) as client:
            assert client.get("/users").json() == users
            assert client.get("/audit/head").json() == log_head
            assert client.get(stored["content_url"]).content == body
            assert client.post("/audit/verify").json()["ok"] is True


def test_one_home_has_one_server(tmp_path: Path) -> None:
    """A second one is refused and names the process; the first goes on; after a kill the home is free."""
    home = tmp_path / "home"
    with serving(home) as first:
        ended = run_serve("--home", str(home), "--port", "0")
        assert ended.returncode == MISCONFIGURED
        assert f"Process {first.pid} already serves" in ended.stderr
        assert first.alive()
        first.process.kill()
        first.wait()
    with serving(home) as again:
        assert again.alive()


def test_sigterm_lets_a_running_upload_end(tmp_path: Path) -> None:
    """What was begun is answered in full and kept; nothing new is let in; the process ends with 0, its log whole."""
    home = tmp_path / "home"
    body = picture(300)
    with serving(home, shutdown_grace_s=20) as server:
        with connect(server.port) as upload:
            about = [f"Authorization: Bearer {server.admin_key}", f"Content-Length: {len(body)}"]
            send(upload, head("POST", "/files", *about), body[: len(body) // 2])
            wait_until(lambda: any((home / "blobs" / "incoming").iterdir()))
            server.terminate()
            wait_until(lambda: not listens(server))
            send(upload, body[len(body) // 2 :])
            answer = receive(upload)
            assert answer.status == 201
            assert answer.headers["connection"] == "close"
        assert server.wait() == 0
    logged = [json.loads(line) for line in (home / "logs" / "app.log").read_text().splitlines()]
    assert [(line["route"], line["status"]) for line in logged if line["event"] == "request"] == [("/files", 201)]
    assert logged[-1]["event"].startswith("Finished server process")
    with serving(home) as again, again.client() as client:
        assert client.get(answer.json()["content_url"]).content == body


def test_sigterm_lets_a_running_download_end(tmp_path: Path) -> None:
    """A client that is still reading gets the rest of its file."""
    home = tmp_path / "home"
    body = picture(2000)
    assert len(body) > 2 * MIB  # more than what lies in buffers between the two
    with serving(home, shutdown_grace_s=20) as server:
        with server.client() as client:
            stored = client.post("/files", content=body).json()
        with connect(server.port) as download:
            send(download, head("GET", stored["content_url"], f"Authorization: Bearer {server.admin_key}"))
            raw = download.recv(1000)
            server.terminate()
            wait_until(lambda: not listens(server))
            while piece := download.recv(65536):
                raw += piece
        assert raw.partition(b"\r\n\r\n")[2] == body
        assert server.wait() == 0


def test_sigterm_waits_no_longer_than_the_grace(tmp_path: Path) -> None:
    """What does not end is told 503 in the one form, or cut; the process is gone soon after the grace."""
    home = tmp_path / "home"
    with serving(home, shutdown_grace_s=1) as server:
        about = [f"Authorization: Bearer {server.admin_key}", "Content-Length: 1000000"]
        with connect(server.port) as stuck:
            send(stuck, head("POST", "/files", *about), b"\x89PNG")
            wait_until(lambda: any((home / "blobs" / "incoming").iterdir()))
            started = time.monotonic()
            server.terminate()
            answer = receive(stuck)
        assert server.wait() == 0
        assert 0.9 < time.monotonic() - started < 10
        assert answer.status == 503
        check_error(answer.status, answer.headers["content-type"], answer.body)
        assert list((home / "blobs" / "incoming").iterdir()) == []
        assert (home / "logs" / "errors.log").read_text().count("Traceback") == 0


def test_a_second_interrupt_is_not_needed(tmp_path: Path) -> None:
    """One SIGINT on an idle server ends it at once, as SIGTERM does."""
    with serving(tmp_path / "home") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.wait(15) == 130


def listens(server: ServerProcess) -> bool:
    try:
        connect(server.port, seconds=1).close()
    except OSError:
        return False
    return True


PLANTED = {
    "password": "canary-password-5Jq",
    "new password": "canary-new-password-8Ks",
    "secret": "canary-secret-value-2Wd",
    "given secret": "canary-given-secret-9Xv",
    "jwt secret": "canary-jwt-secret-of-more-than-32-characters",
    "former jwt secret": "canary-former-jwt-secret-of-32-characters",
    "secrets key": "canary-secrets-key-of-more-than-32-characters",
    "redis password": "canary-redis-password-4Mn",
}


def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    """Keys, passwords, tokens and cookies: in no log at level debug, not plain in the database, in no answer."""
    home = tmp_path / "home"
    settings = {
        "log_level": "debug",
        "jwt_secret": PLANTED["jwt secret"],
        "jwt_previous_secrets": PLANTED["former jwt secret"],
        "secrets_key": PLANTED["secrets key"],
        "secret_hub": PLANTED["given secret"],
        "redis_url": f"redis://:{PLANTED['redis password']}@127.0.0.1:{free_port()}/0",
    }
    shown: list[str] = []
    with serving(home, **settings) as server:
        assert any(str(home / "admin.key") in line for line in server.lines)
        canaries = {
            **PLANTED,
            "first key": server.admin_key,
            "its end": server.admin_key[-30:],
            **use_everything(server, shown),
        }
        server.terminate()
        assert server.wait() == 0
        shown += server.lines
    places = {"answers, metrics and terminal": "\n".join(shown).encode("utf-8", "replace")}
    places |= {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert len(places["logs/app.log"]) > 10_000
    assert b'"level": "debug"' in places["logs/app.log"]
    for private in ("admin.key", "jwt.key", "secrets.key"):
        places.pop(private, None)  # these files are where a secret of the server is kept
    for what, canary in canaries.items():
        for place, content in places.items():
            assert canary.encode() not in content, f"{what} is in {place}"


def use_everything(server: ServerProcess, shown: list[str]) -> dict[str, str]:
    """Work as users do, rightly and wrongly; collect what was shown; return the secrets that were made on the way."""

    def note(response: httpx.Response, *secret_members: str) -> httpx.Response:
        text = response.text
        told = response.json() if secret_members else {}
        for member in secret_members:
            text = text.replace(told[member], "(shown once)")
        cookie = re.sub(r"serai_session=[^;]+", "", response.headers.get("set-cookie", ""))
        shown.append(f"{response.status_code} {dict(response.headers) | {'set-cookie': cookie}} {text}")
        return response

    made: dict[str, str] = {}
    with server.client() as admin, httpx.Client(base_url=server.url, trust_env=False) as nobody:
        user = note(admin.post("/users", json={"name": "ada", "password": PLANTED["password"]})).json()
        key = note(admin.post("/keys", json={"name": "k", "user_id": user["id"]}), "key").json()
        made["user's key"] = key["key"]
        token = note(admin.post("/tokens"), "token").json()
        made["token"] = token["token"]
        made["token's signature"] = token["token"].rpartition(".")[2]
        login = note(nobody.post("/login", json={"name": "ada", "password": PLANTED["password"]}), "csrf_token")
        made["cookie"] = nobody.cookies["serai_session"]
        made["csrf"] = login.json()["csrf_token"]
        made["webhook secret"] = note(admin.get("/jobs/webhook-secret"), "secret").json()["secret"]
        note(nobody.get("/whoami"), "csrf_token")
        note(nobody.post("/logout", headers={"x-csrf-token": made["csrf"]}))
        note(nobody.post("/login", json={"name": "ada", "password": PLANTED["new password"]}))
        note(admin.patch(f"/users/{user['id']}", json={"password": PLANTED["new password"]}))
        note(admin.put("/secrets/stored", json={"value": PLANTED["secret"], "origins": ["https://example.test"]}))
        note(admin.put("/secrets/hub", json={"origins": ["https://example.test"]}))
        note(admin.put("/secrets/Bad", json={"value": PLANTED["secret"], "origins": []}))
        note(admin.post("/users", json={"name": "eve", "pasword": PLANTED["password"]}))
        note(admin.post("/users", json={"name": 5, "password": PLANTED["password"]}))
        note(admin.post("/users", content=b'{"password": "' + PLANTED["password"].encode()))
        note(admin.post("/users", content=PLANTED["password"], headers={"content-type": "application/json"}))
        misplaced_key(server, made["user's key"])
        for path in ("/users", "/keys", "/secrets", "/audit", "/settings", "/diag", "/status", "/health", "/metrics"):
            note(admin.get(path))
        note(admin.post("/audit/verify"))
        note(admin.post("/users?dry_run=1", json={"name": "mallory", "password": PLANTED["password"]}))
        note(admin.put("/secrets/dry?dry_run=1", json={"value": PLANTED["secret"], "origins": ["https://a.test"]}))
        note(admin.delete(f"/keys/{key['id']}"))
        note(admin.delete(f"/users/{user['id']}"))
    return made


def misplaced_key(server: ServerProcess, key: str) -> None:
    """Send a key where none belongs; the answers repeat what the client sent and are not looked at."""
    for path in (f"/users/{key}", f"/live?api_key={key}", f"/{key}", f"/files/{key}/content"):
        for header in (f"Authorization: {key}", f"Cookie: other={key}", f"Authorization: Basic {key}"):
            exchange(server.port, head("GET", path, header, f"User-Agent: {key}", f"Referer: http://a/?k={key}"))
