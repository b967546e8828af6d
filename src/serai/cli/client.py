"""The HTTP client of the commands: finds the server and the key, and turns envelopes into errors again."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx
import typer

from serai.cli.output import options_of
from serai.clock import SystemClock
from serai.errors import ConfigurationError, SeraiError, UpstreamFailed
from serai.settings import client_settings

RESUME_S = 60.0


class Refused(SeraiError):
    """The server said no; message and hint are its own."""

    code = "SERVER_REFUSED"


class Client:
    """Calls the API of one server."""

    def __init__(self, context: typer.Context, *, timeout_s: float | None = 30) -> None:
        options = options_of(context)
        found = client_settings(options.url, options.api_key)
        headers = {"authorization": f"Bearer {found.api_key}"} if found.api_key else {}
        self.url = found.url
        try:
            self._http = httpx.Client(base_url=found.url, headers=headers, timeout=timeout_s, trust_env=False)
        except httpx.InvalidURL:
            raise ConfigurationError(f"{found.url} is not a URL.", hint="A URL is written http://host:port.") from None
        context.call_on_close(self._http.close)

    def call(self, method: str, path: str, *, body: Any = None, **parameters: Any) -> Any:
        """Return the JSON answer (None for 204). Raises Refused, or UpstreamFailed without a server."""
        given = {name: value for name, value in parameters.items() if value is not None}
        response = self._asked(method, path, json=body, params=given)
        return response.json() if response.content else None

    def upload(self, path: str, content: bytes, **parameters: Any) -> Any:
        """Send a file as the bare body and return the JSON answer. Raises what `call` raises."""
        return self._asked(
            "POST", path, content=content, params=parameters, timeout=httpx.Timeout(30, write=None)
        ).json()

    def download(self, path: str) -> bytes:
        """Return the bytes that stand there. Raises what `call` raises."""
        return self._asked("GET", path).content

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._lost(error) from None
        if response.is_error:
            raise _refusal(response)
        return response

    def every(self, path: str, **parameters: Any) -> Any:
        """Return one page that holds the items of all pages. Raises what `call` raises."""
        page = self.call("GET", path, limit=200, **parameters)
        items = page["items"]
        while page["next_cursor"] is not None:
            page = self.call("GET", path, limit=200, cursor=page["next_cursor"], **parameters)
            items += page["items"]
        return {"items": items, "next_cursor": None}

    def stream(self, method: str, path: str, *, body: Any) -> Iterator[dict[str, Any]]:
        """Yield the data of the server-sent events of one answer. Raises what `call` raises."""
        try:
            timeout = httpx.Timeout(30, read=None)
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield from (data for _, data in _frames(response.iter_lines()))
        except httpx.HTTPError as error:
            raise self._lost(error) from None

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream to its end; resumes behind the last numbered one when the line is cut.

        Raises Refused, or UpstreamFailed when no server answers for `RESUME_S`.
        """
        last_id, cut_since = "", None
        while True:
            headers = {"last-event-id": last_id} if last_id else {}
            try:
                with self._http.stream("GET", path, headers=headers, timeout=httpx.Timeout(30, read=60)) as response:
                    if response.is_error:
                        response.read()
                        raise _refusal(response)
                    cut_since = None
                    for number, event in _frames(response.iter_lines()):
                        last_id = number or last_id
                        yield event
                        if event["type"] in ("done", "failed"):
                            return
            except httpx.HTTPError as error:
                now = SystemClock().monotonic()
                cut_since = cut_since or now
                if now - cut_since > RESUME_S:
                    raise self._lost(error) from None
            pause(0.5)

    def _lost(self, error: httpx.HTTPError) -> UpstreamFailed:
        if isinstance(error, httpx.ReadTimeout):
            message = f"The server at {self.url} has not answered in time."
            return UpstreamFailed(message, hint="It may still do what was asked: look before you ask again.")
        if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
            message = f"The server at {self.url} broke the connection off ({type(error).__name__})."
            return UpstreamFailed(message, hint="It was stopped, or has crashed; ask again when it is back.")
        return UpstreamFailed(
            f"No server answers at {self.url} ({type(error).__name__}).",
            hint="Start one with 'serai serve', or name it with --url or SERAI_URL.",
        )


def pause(seconds: float) -> None:
    """Wait; Ctrl-C ends it."""
    threading.Event().wait(seconds)


def _frames(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and data of each server-sent event (WHATWG HTML, section 9.2)."""
    number, data = "", []
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = value
        elif name == "data":
            data.append(value)
        elif not line and data:
            yield number, json.loads("\n".join(data))
            number, data = "", []


def refused(told: Mapping[str, Any]) -> Refused:
    """Return the error that an envelope tells of. Raises KeyError, TypeError for what is none."""
    return Refused(f"{told['message']} [{told['code']}]", hint=told["hint"], details=told["details"])


def _refusal(response: httpx.Response) -> SeraiError:
    try:
        return refused(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return UpstreamFailed(f"The server answered {response.status_code} without saying why.")
