"""`serai users`: who may use the server."""

from typing import Annotated, Any

import typer

from serai.cli.output import show

app = typer.Typer(help="Users: list, create, change, delete.", no_args_is_help=True)
_COLUMNS = ("id", "name", "role", "has_password", "disabled", "created_at")
Role = Annotated[str | None, typer.Option(help="viewer, user, moderator or admin.")]
Password = Annotated[bool, typer.Option("--password", help="Ask for a password (needed for signing in by name).")]


@app.command("list")
def list_users(context: typer.Context) -> None:
    """List the users."""
    from serai.cli.client import Client

    show(context, Client(context).every("/users"), _COLUMNS)


@app.command()
def create(context: typer.Context, name: str, role: Role = "user", password: Password = False) -> None:
    """Create a user."""
    from serai.cli.client import Client

    body = {"name": name, "role": role, "password": _ask() if password else None}
    show(context, Client(context).call("POST", "/users", body=body))


@app.command()
def update(
    context: typer.Context,
    user_id: str,
    role: Role = None,
    password: Password = False,
    disable: Annotated[bool | None, typer.Option("--disable/--enable", help="End or restore access.")] = None,
) -> None:
    """Change a user; its tokens and sessions end at once."""
    from serai.cli.client import Client

    body: dict[str, Any] = {"role": role, "password": _ask() if password else None, "disabled": disable}
    changes = {name: value for name, value in body.items() if value is not None}
    show(context, Client(context).call("PATCH", f"/users/{user_id}", body=changes))


@app.command()
def delete(context: typer.Context, user_id: str) -> None:
    """Remove a user and its keys."""
    from serai.cli.client import Client

    Client(context).call("DELETE", f"/users/{user_id}")
    show(context, {"deleted": user_id})


def _ask() -> str:
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return answer
