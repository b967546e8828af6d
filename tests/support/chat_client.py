"""A running server with fake models, for real clients: echo, vectors, broken, breaks, endless."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.process import ServerProcess, serving

MODELS: dict[str, dict[str, Any]] = {
    "echo": {},
    "vectors": {"task": "embedding", "engine_options": {"dimensions": 4}},
    "broken": {"engine_options": {"fail": "run"}},
    "breaks": {"engine_options": {"fail": "run", "fail_after": 2}},
    "endless": {"engine_options": {"tokens": 10_000, "step_s": 0.05}},
}
"""Each repeats its prompt; what differs is how."""
_FOOTPRINT = [{"device": "cpu", "bytes": 2**20}]


@dataclass
class ServedModels:
    """A server with the models; the keys of an admin and of a viewer."""

    process: ServerProcess
    viewer_key: str

    @property
    def url(self) -> str:
        return self.process.url

    @property
    def key(self) -> str:
        return self.process.admin_key

    def await_idle(self, model: str, seconds: float = 60) -> None:
        """Return when nothing runs on the model any more."""
        until = time.monotonic() + seconds
        with self.process.client() as client:
            while any(one["model"] == model and one["in_flight"] for one in client.get("/ps").json()["items"]):
                if time.monotonic() > until:
                    raise TimeoutError(f"{model} still runs")
                time.sleep(0.02)


@contextmanager
def served_models(home: Path, **settings: Any) -> Iterator[ServedModels]:
    """Run a server in `home` until the block ends."""
    with serving(home, rate_limits="off", **settings) as process:
        with process.client() as client:
            for id_, values in MODELS.items():
                source = {"kind": "package", "name": id_}
                card = {"id": id_, "task": "chat", "version": "1.0.0", "engine": "fake", "source": source}
                made = client.post("/models", json={**card, "licence": "MIT", "footprint": _FOOTPRINT, **values})
                assert made.status_code == 201, made.text
            user = client.post("/users", json={"name": "onlooker", "role": "viewer"}).json()
            key = client.post("/keys", json={"name": "onlooker", "user_id": user["id"]}).json()
        yield ServedModels(process=process, viewer_key=key["key"])
