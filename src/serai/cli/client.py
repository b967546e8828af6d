"""The HTTP client of the commands: finds the server and the key, and turns envelopes into errors again."""

from typing import Any

import httpx
import typer

from serai.cli.output import options_of
from serai.errors import SeraiError, UpstreamFailed
from serai.settings import client_settings


class Refused(SeraiError):
    """The server said no; message and hint are its own."""

    code = "SERVER_REFUSED"


class Client:
    """Calls the API of one server."""

    def __init__(self, context: typer.Context) -> None:
        options = options_of(context)
        found = client_settings(options.url, options.api_key)
        headers = {"authorization": f"Bearer {found.api_key}"} if found.api_key else {}
        self.url = found.url
        self._http = httpx.Client(base_url=found.url, headers=headers, timeout=30, trust_env=False)

    def call(self, method: str, path: str, *, body: Any = None, **parameters: Any) -> Any:
        """Return the JSON answer (None for 204). Raises Refused, or UpstreamFailed without a server."""
        given = {name: value for name, value in parameters.items() if value is not None}
        try:
            response = self._http.request(method, path, json=body, params=given)
        except httpx.HTTPError as error:
            raise UpstreamFailed(
                f"No server answers at {self.url} ({type(error).__name__}).",
                hint="Start one with 'serai serve', or name it with --url or SERAI_URL.",
            ) from None
        if response.is_error:
            raise _refusal(response)
        return response.json() if response.content else None


def _refusal(response: httpx.Response) -> SeraiError:
    try:
        told = response.json()["error"]
        return Refused(f"{told['message']} [{told['code']}]", hint=told["hint"], details=told["details"])
    except (ValueError, KeyError, TypeError):
        return UpstreamFailed(f"The server answered {response.status_code} without saying why.")
