"""The command `serai`. Each command imports what it needs when it runs: `serai --help` stays quick.

Exit codes: 0 done · 1 refused, by the server or by what was asked · 2 wrong usage · 3 the server
cannot be reached · 4 the configuration is wrong.
"""

import sys
from typing import Annotated

import typer

from serai import __version__
from serai.cli import (
    aliases,
    audit,
    database,
    doctor,
    image,
    jobs,
    keys,
    models,
    pull,
    run,
    runtime,
    secrets,
    serve,
    services,
    users,
    versions,
)
from serai.cli.output import ClientOptions, fail

app = typer.Typer(
    name="serai",
    help="One self-hosted server for every generative model of a product.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("pull")(pull.pull)
app.command("run")(run.run)
app.command("image")(image.image)
app.command("ps")(runtime.ps)


@app.command()
def demo() -> None:
    """Start a server in a temporary home, walk through what it can do, check it, stop it."""
    from serai.cli.demo import demo

    demo()


models.app.command("load")(runtime.load)
models.app.command("unload")(runtime.unload)
models.app.command("clear-cooldown")(runtime.clear_cooldown)
app.add_typer(models.app, name="models")
app.add_typer(versions.app, name="versions")
app.add_typer(aliases.app, name="aliases")
app.add_typer(services.app, name="services")
app.add_typer(keys.app, name="keys")
app.add_typer(users.app, name="users")
app.add_typer(secrets.app, name="secrets")
app.add_typer(jobs.app, name="jobs")
app.add_typer(audit.app, name="audit")
app.add_typer(database.app, name="db")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"serai {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="The server; SERAI_URL, or this machine's.")] = None,
    api_key: Annotated[str | None, typer.Option(help="SERAI_API_KEY, or the key of the first start.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """One self-hosted server for every generative model of a product."""
    context.obj = ClientOptions(url=url, api_key=api_key, as_json=as_json)


def main() -> None:
    """Run the command; an error of ours ends it with one line, its hint, and an exit code."""
    from serai.errors import ConfigurationError, InvalidInput, SeraiError

    try:
        app()
    except SeraiError as error:
        fail(error)
    except UnicodeError:
        fail(InvalidInput("An argument or a variable holds characters that are not text in UTF-8."))
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.exit(0)
    except OSError as error:
        fail(
            ConfigurationError(f"{error.filename or 'A file'}: {error.strerror}.", hint="Check the path and its owner.")
        )
    except KeyboardInterrupt:
        sys.exit(130)
