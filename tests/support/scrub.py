"""What no error may tell: addresses in memory, paths of the server, traces, SQL, the libraries in use."""

import json
import re
from typing import Any, Final
from urllib.parse import unquote

LEAKS: Final = {
    "an address in memory": re.compile(r"\b0x[0-9a-fA-F]{4,}"),
    "a path of the server": re.compile(
        r"(?<![\w.:/-])/(?:home|root|tmp|usr|var|etc|opt|proc|srv|mnt|lib|work)/[\w.-]+"
    ),
    "a file of source": re.compile(r"\b[\w/-]+\.(?:py|so|db|sock)\b"),
    "a traceback": re.compile(r"Traceback|\bline \d+, in\b|most recent call last"),
    "SQL": re.compile(
        r"\bSELECT\b|\bINSERT INTO\b|\bDELETE FROM\b|\bUPDATE \w+ SET\b|\bWHERE \w+ ?[=<>]|\bVALUES ?\("
        r"|UNIQUE constraint|violates \w+|relation \"|syntax error at"
    ),
    "the name of a library": re.compile(
        r"\b(?:sqlalchemy|sqlite3?|psycopg|pydantic|starlette|fastapi|uvicorn|httptools|msgspec|pil|pillow|pyav|ffmpeg"
        r"|libav\w*|libx?26\d|alembic|asyncio|anyio|argon2|jwt\.\w+|redis\.\w+)\b",
        re.IGNORECASE,
    ),
    "a Python name": re.compile(r"<(?:class|function|module|built-in|object)\b|\bobject at\b|\b\w+Error\b(?!\w)"),
}
CODE: Final = re.compile(r"[A-Z][A-Z_]{2,63}")
MEMBERS: Final = {"code", "message", "hint", "request_id", "details"}


def leaks(text: str, said: str = "") -> list[str]:
    """Return what `text` gives away, besides what the client itself `said`."""
    found = []
    for what, pattern in LEAKS.items():
        found += [f"{what}: {match.group()}" for match in pattern.finditer(text) if match.group() not in said]
    return found


def check_envelope(told: Any) -> None:
    """Fail unless `told` is the one form of an error."""
    assert isinstance(told, dict), told
    assert set(told) == {"error"}, told
    assert set(told["error"]) == MEMBERS, told
    assert CODE.fullmatch(told["error"]["code"]), told
    assert isinstance(told["error"]["message"], str), told
    assert told["error"]["message"], told


def check_openai(told: Any) -> None:
    """Fail unless `told` is an error as OpenAI's clients read it."""
    assert set(told) <= {"error", "partial"}, told
    assert set(told["error"]) == {"message", "type", "param", "code"}, told
    assert told["error"]["message"], told


def check_ollama(told: Any) -> None:
    """Fail unless `told` is an error as Ollama's clients read it."""
    assert set(told) == {"error"}, told
    assert isinstance(told["error"], str), told
    assert told["error"], told


def check_form(told: Any, path: str) -> None:
    """Fail unless `told` has the form that errors have at a path."""
    if path.startswith("/v1/"):
        check_openai(told)
    elif path.startswith("/api/"):
        check_ollama(told)
    elif path not in ("/ready", "/health"):  # those two tell how it is, in a form of their own
        check_envelope(told)


def check_error(status: int, content_type: str, body: bytes, *, path: str = "", said: str = "") -> None:
    """Fail unless this answer of 4xx or 5xx has the envelope and keeps the server's secrets to itself."""
    assert content_type.partition(";")[0] == "application/json", (status, content_type, body[:300])
    text = body.decode("utf-8")
    found = leaks(text, unquote(said))
    assert not found, f"{status} {path}: {found} in {text[:1000]}"
    check_form(json.loads(text), path)
