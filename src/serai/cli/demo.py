"""`serai demo`: a server of its own in a temporary home, walked through what it can do, and checked."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

import serai
from serai.errors import SeraiError

STARTER = Path(serai.__file__).parent / "starters" / "starter-chat"
"""The chat model that ships with the package."""

MEMORY_BYTES = 700 * 2**20
"""Of the demo's server: enough for the chat model that ships or for the image model, not for both at once."""


class DemoFailed(SeraiError):
    code = "DEMO_FAILED"


@dataclass
class Stage:
    """The running server, as its first admin sees it, and what steps hand to later ones."""

    http: httpx.Client
    home: Path
    kept: dict[str, Any] = field(default_factory=dict)

    def call(self, method: str, path: str, *, expect: int = 200, **options: Any) -> Any:
        """Return the JSON answer. Raises DemoFailed for another status than `expect`."""
        response = self.http.request(method, path, **options)
        if response.status_code != expect:
            raise DemoFailed(f"{method} {path} answered {response.status_code}, not {expect}: {response.text[:300]}")
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return response.json() if is_json else response.content


def events_of(stage: Stage, method: str, path: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield the data of the server-sent events of an answer. Raises DemoFailed for another status than 200."""
    with stage.http.stream(method, path, **options) as response:
        if response.status_code != 200:
            raise DemoFailed(f"{method} {path} answered {response.status_code}: {response.read()[:300]!r}")
        yield from (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def check(holds: object, otherwise: str) -> None:
    """Raise DemoFailed, which says `otherwise`, unless it holds."""
    if not holds:
        raise DemoFailed(otherwise)


def demo() -> None:
    """Start a server, do its main work on real input, check every answer, and stop it."""
    from serai.cli import demo_images, demo_models, demo_registry
    from serai.cli.demo_hub import hub

    steps: tuple[Callable[[Stage], str], ...] = (
        healthy,
        a_user_and_a_key,
        a_picture,
        a_bad_picture,
        *demo_registry.STEPS,
        *demo_models.STEPS,
        *demo_images.STEPS,
        rehearsal,
        audited,
    )
    with tempfile.TemporaryDirectory(prefix="serai-demo-") as folder, hub(STARTER) as hub_url:
        home = Path(folder) / "home"
        with server(home, hub_endpoint=hub_url, outbound_allow="127.0.0.1", cpu_memory_bytes=str(MEMORY_BYTES)) as url:
            key = (home / "admin.key").read_text("utf-8").strip()
            headers = {"authorization": f"Bearer {key}"}
            with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
                stage = Stage(http=http, home=home)
                for step in steps:
                    told = step(stage)
                    print(f"  ok  {(step.__doc__ or '').rstrip('.')}: {told}")
    print("Everything above was asked of a real server and checked.")


@contextmanager
def server(home: Path, **settings: str) -> Iterator[str]:
    """Run `serai serve` on a free port of loopback; yields its URL; ends it with SIGTERM."""
    command = [sys.executable, "-m", "serai", "serve", "--home", str(home), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERAI_")}
    environment |= {f"SERAI_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None  # asked for above
        url = _wait_for_url(process.stderr)
        print(f"Serai runs at {url}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    if process.returncode not in (0, -signal.SIGTERM):
        raise DemoFailed(f"the server ended with {process.returncode}")


def _wait_for_url(lines: IO[str]) -> str:
    said = []
    for line in lines:
        said.append(line)
        if line.startswith("Serai is ready at "):
            return line.split()[4]
    raise DemoFailed("The server did not start: " + "".join(said)[-2000:])


def healthy(stage: Stage) -> str:
    """The server is healthy."""
    health = stage.call("GET", "/health")
    if health["status"] != "healthy":
        raise DemoFailed(f"/health says {json.dumps(health)}")
    return f"{', '.join(health['checks'])} answer"


def a_user_and_a_key(stage: Stage) -> str:
    """A user with a key of its own."""
    user = stage.call("POST", "/users", json={"name": "ada", "role": "user"}, expect=201)
    made = stage.call("POST", "/keys", json={"name": "laptop", "user_id": user["id"]}, expect=201)
    stage.kept["ada"] = {"authorization": f"Bearer {made['key']}"}
    me = stage.call("GET", "/whoami", headers=stage.kept["ada"])
    stage.call("GET", "/users", headers=stage.kept["ada"], expect=403)
    return f"{me['name']} is {me['role']}, and may not list users"


def a_picture(stage: Stage) -> str:
    """A picture goes in and comes back."""
    picture = _picture()
    file = stage.call("POST", "/files?name=square.png", content=picture, headers=stage.kept["ada"], expect=201)
    if (file["media_type"], file["info"]["width"]) != ("image/png", 320):
        raise DemoFailed(f"the picture was taken for {file}")
    if stage.call("GET", file["content_url"], headers=stage.kept["ada"]) != picture:
        raise DemoFailed("the picture came back changed")
    return f"{file['media_type']}, {file['info']['width']}×{file['info']['height']}, {file['size']} bytes"


def a_bad_picture(stage: Stage) -> str:
    """A broken picture is refused with a reason."""
    refused = stage.call("POST", "/files", content=_picture()[:60], headers=stage.kept["ada"], expect=422)
    return str(refused["error"]["message"])


def rehearsal(stage: Stage) -> str:
    """A change can be rehearsed."""
    told = stage.call("POST", "/users?dry_run=1", json={"name": "eve"})
    names = [user["name"] for user in stage.call("GET", "/users")["items"]]
    if "eve" in names:
        raise DemoFailed("the rehearsal made the user")
    return f"it would do {told['changes'][0]['action']}, and did nothing"


def audited(stage: Stage) -> str:
    """Every change is in the audit log, whose chain holds."""
    verdict = stage.call("POST", "/audit/verify")
    if not verdict["ok"]:
        raise DemoFailed(f"the audit log is broken: {verdict}")
    return f"{verdict['entries']} entries"


def _picture() -> bytes:
    """Return a real PNG."""
    import io

    from PIL import Image, ImageDraw

    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((80, 40, 240, 200), fill="crimson")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
