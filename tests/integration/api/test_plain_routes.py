"""The routes that are called most do without the framework's solver, and no route that needs it does."""

from pathlib import Path

from serai.api.access import SecuredRoute
from serai.app import create_app
from serai.settings import Settings


def test_the_routes_of_chats_are_plain(tmp_path: Path) -> None:
    """A parameter that is added to one of them would cost each of its calls a part, without a word."""
    routes = [route for route in create_app(Settings(home=tmp_path)).routes if isinstance(route, SecuredRoute)]
    plain = {route.path for route in routes if route._is_plain}
    assert {"/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/api/chat", "/chat"} <= plain
    assert not any("{" in path for path in plain)
