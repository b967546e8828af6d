"""Writes the reference from the code: settings, errors, routes, metrics, commands, engines, serai.toml.example.

    python docs/generate.py            write the files that have changed
    python docs/generate.py --check    exit 1 and name the files that are not what the code says

Nothing here knows a setting, an error, a route, a metric, a command or an engine by name.
"""

import ast
import asyncio
import importlib
import inspect
import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import structlog
import typer
from fastapi import FastAPI
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from serai import errors, settings
from serai.api.access import SecuredRoute
from serai.api.errors import STATUS
from serai.app import create_app
from serai.cli import main as command_line
from serai.engines.base import EngineInfo
from serai.engines.catalogue import CATALOGUE
from serai.errors import SeraiError
from serai.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "serai"
NOTE = "<!-- Written by docs/generate.py from the code; change the code, not this file. -->\n\n"
COMMAND = "python docs/generate.py"
MIB = 2**20
BOUNDS = ("gt", "ge", "le", "lt", "min_length", "pattern")


def everything() -> dict[str, str]:
    """Return every generated file: its path from the root of the project, and its text."""
    with tempfile.TemporaryDirectory(prefix="serai-docs-") as folder:
        chosen: dict[str, Any] = {"home": Path(folder) / "home", "min_free_disk_bytes": 0}
        app = create_app(Settings(**chosen))
        metrics = asyncio.run(_metrics_of(app))
    return {
        "docs/reference/settings.md": settings_page(),
        "docs/reference/errors.md": errors_page(),
        "docs/reference/api.md": api_page([route for route in app.routes if isinstance(route, SecuredRoute)]),
        "docs/reference/metrics.md": metrics_page(metrics),
        "docs/reference/cli.md": cli_page(),
        "docs/reference/engines.md": engines_page(list(CATALOGUE.values())),
        "serai.toml.example": example_file(),
    }


# Markdown


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a cell may hold anything but a line break."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: object) -> str:
    """Return the text as code, or nothing for nothing."""
    return f"`{text}`" if str(text) else ""


# Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, in words."""

    name: str
    variable: str
    description: str
    allowed: str
    default: str
    example: str | None
    """The value as TOML, None for a secret: the default, or, where there is none, an example of one."""
    is_set: bool
    """Whether there is a default."""


def sections() -> Iterator[tuple[str, list[Setting]]]:
    """Yield the settings under the headings that stand as comments above them in the source."""
    heading, found = "", list[Setting]()
    for line in inspect.getsource(Settings).splitlines():
        comment, field = re.match(r"    # (.+)$", line), re.match(r"    (\w+):", line)
        if comment:
            if found:
                yield heading, found
            heading, found = comment[1], []
        elif field and field[1] in Settings.model_fields:
            found.append(setting(field[1], Settings.model_fields[field[1]]))
    yield heading, found


def setting(name: str, field: FieldInfo) -> Setting:
    """Return the words for a field. Raises ValueError for one that cannot be documented."""
    if not field.description:
        raise ValueError(f"the setting {name} needs a description")
    is_secret = SecretStr in _parts(field.annotation)
    is_set = field.default is not None
    if not is_secret and not is_set and not field.examples:
        raise ValueError(f"the setting {name} has no default: give its Field an example, examples=[…]")
    variable = f"{settings.PREFIX}{name.upper()}"
    if name == "secrets":
        variable = f"{settings.SECRET_PREFIX}<NAME>"
    return Setting(
        name=name,
        variable=f"{variable}` or `{variable}{settings.FILE_SUFFIX}" if is_secret else variable,
        description=field.description,
        allowed=_allowed(field),
        default=_shown(name, field.default) if is_set and not is_secret else "not set",
        example=None if is_secret else _toml(field.default if is_set or not field.examples else field.examples[0]),
        is_set=is_set,
    )


def _parts(annotation: Any) -> set[Any]:
    """Return the types that an annotation is made of."""
    inner = get_args(annotation)
    return {annotation, *(part for argument in inner for part in _parts(argument))} if inner else {annotation}


def _allowed(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(code(json.dumps(value)) for value in get_args(annotation))
    names = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "text"}
    words = ["a list of texts"] if get_origin(annotation) is tuple else []
    if get_origin(annotation) is dict:
        words.append("a table of paths by name" if Path in _parts(annotation) else "a table of texts by name")
    words += [names[part] for part in names if part in _parts(annotation) and not words]
    bounds = {name: getattr(entry, name, None) for entry in field.metadata for name in BOUNDS if hasattr(entry, name)}
    signs = {"gt": "greater than", "ge": "at least", "le": "at most", "lt": "less than"}
    if "ge" in bounds:  # the stricter of two lower bounds
        bounds.pop("gt", None)
    words += [f"{sign} {bounds[name]}" for name, sign in signs.items() if name in bounds]
    words += [f"{bounds['min_length']} characters or more"] if "min_length" in bounds else []
    words += [f"matching {code(bounds['pattern'])}"] if "pattern" in bounds else []
    return ", ".join(words)


def _shown(name: str, default: Any) -> str:
    told = code(_toml(default))
    if name.endswith("_bytes") and default >= MIB:
        told += f" ({default // MIB} MiB)" if default < 1024 * MIB else f" ({default // (1024 * MIB)} GiB)"
    return told


def _toml(value: Any) -> str:
    """Return a value as TOML writes it; for text, numbers and lists of them JSON does it alike."""
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def settings_page() -> str:
    """Return docs/reference/settings.md."""
    text = (
        f"{NOTE}# Settings\n\n"
        "Each setting has a default. `serai.toml` replaces defaults, variables of the environment replace what the "
        "file says, and options of the command line replace both. The file is the one that `SERAI_CONFIG` or "
        "`--config` names, else `serai.toml` in the working folder or in `home`. Lists are written with commas in the "
        "environment: `SERAI_ALLOWED_HOSTS=a.example,b.example`. With `_FILE` behind its name a variable names a file "
        "that holds the value. A setting that does not exist, or a value that is not allowed, stops the start.\n\n"
        "`serai.toml.example` is a file to begin with.\n"
    )
    for heading, found in sections():
        rows = [
            (code(one.name), one.default, one.allowed, one.description.replace("<", "&lt;"), code(one.variable))
            for one in found
        ]
        text += f"\n## {heading}\n\n" + table(("setting", "default", "allowed", "what it is", "environment"), rows)
    return text


def example_file() -> str:
    """Return serai.toml.example."""
    text = (
        "# The settings of Serai, each with its default. To change one, take away the '#' before its name.\n"
        "# The server reads this file as serai.toml in its working folder or in its home. Variables of the\n"
        "# environment win over the file. docs/reference/settings.md says the same as a table.\n"
    )
    for heading, found in sections():
        text += f"\n\n# ---- {heading} ----\n"
        for one in found:
            words = [one.description]
            if one.example is None:
                words.append(f"A secret: it has no place in this file. Environment: {one.variable.replace('`', '')}.")
            else:
                allowed = f"Allowed: {one.allowed.replace('`', '')}. " if one.allowed else ""
                words.append(f"{allowed}Environment: {one.variable}.")
                words += [] if one.is_set else ["Not set by default; for example:"]
            text += "\n" + "".join(f"# {word}\n" for word in words)
            text += f"#{one.name} = {one.example}\n" if one.example is not None else f"# ({one.name})\n"
    return text


# Errors


def failures() -> list[type[SeraiError]]:
    """Return every error of the package in the order of the codes.

    Only modules whose source gives a class a code are imported: errors stand where no heavy library is needed.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        if re.search(r'^    code\b.* = "[A-Z]', path.read_text("utf-8"), re.MULTILINE):
            importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    return sorted(_below(SeraiError), key=lambda kind: kind.code)


def _below(kind: type[SeraiError]) -> Iterator[type[SeraiError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("serai."):
            yield child
            yield from _below(child)


def errors_page() -> str:
    """Return docs/reference/errors.md."""
    in_tree = dict(re.findall(r"[├└]── (\w+) +(\S.*)", errors.__doc__ or ""))
    rows, local = [], []
    for kind in failures():
        told = in_tree.get(kind.__name__) or (vars(kind)["__doc__"] or "").partition("\n")[0] or _words(kind.__name__)
        meaning = told[:1].upper() + told[1:].rstrip(".")
        family = next((known for parent in kind.__mro__ for known in STATUS if known is parent), None)
        if family is None or kind.__module__.startswith("serai.cli."):
            local.append((code(kind.code), meaning, kind.default_hint or ""))
        else:
            shown = "" if family is kind else code(family.code)
            rows.append((code(kind.code), str(STATUS[family]), shown, meaning, kind.default_hint or ""))
    heads = ("code", "status", "kind of", "what happened", "hint, where none is given with it")
    return (
        f"{NOTE}# Errors\n\n"
        'Every error has one form: `{"error": {"code", "message", "hint", "request_id", "details"}}`. The code is '
        "stable, the words are for people and may change. `details` is for programs: a list of `{field, problem}` for "
        "what was wrong in the input.\n\n"
        f"{table(heads, rows)}\n## Of the command line alone\n\n{table(('code', 'what happened', 'hint'), local)}"
    )


def _words(name: str) -> str:
    """Return the words of a class's name: `VersionNotFound` → version not found."""
    return " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)).lower()


# Routes


def api_page(routes: Sequence[SecuredRoute]) -> str:
    """Return docs/reference/api.md."""
    text = (
        f"{NOTE}# API\n\n"
        "A running server shows the whole description, bodies and answers included, at `/docs` (for people) and "
        "`/openapi.json` (for programs). Roles include the ones before them: viewer, user, moderator, admin. A key may "
        "be narrowed to scopes. A change that can be rehearsed takes `dry_run=1`: it answers with what would change "
        "and changes nothing.\n"
    )
    for scope in sorted({route.scope for route in routes}):
        rows = []
        for route in (route for route in routes if route.scope == scope):
            access = "public" if route.access is None else route.access.label
            extra = route.openapi_extra or {}
            rehearsal = "yes" if any(entry["name"] == "dry_run" for entry in extra.get("parameters", ())) else ""
            summary = (inspect.getdoc(route.endpoint) or "").partition("\n\n")[0].replace("\n", " ")
            if not summary:
                raise ValueError(f"the route {route.path} needs a docstring")
            rows += [(code(f"{one} {route.path}"), access, rehearsal, summary) for one in sorted(route.methods or ())]
        text += f"\n## Scope {code(scope)}\n\n" + table(("route", "access", "rehearsal", "what it does"), rows)
    return text


# Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One metric as /metrics tells it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


async def _metrics_of(app: FastAPI) -> list[Told]:
    """Start the application, as it is what registers metrics, and return them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async with app.router.lifespan_context(app):
        registry = app.state.parts.metrics.registry
        collectors = list(registry._collector_to_names)  # noqa: SLF001 - the library has no public way to ask
        return [told for collector in collectors for told in _told(collector)]


def _told(collector: Any) -> Iterator[Told]:
    own = collector._labelnames if isinstance(collector, MetricWrapperBase) else ()  # noqa: SLF001 - as above
    family: Metric
    for family in collector.collect():
        labels = tuple(own or getattr(family, "_labelnames", ()) or _declared_labels(collector, family.name))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield Told(name=name, kind=family.type, labels=labels, meaning=family.documentation)


def _declared_labels(collector: Any, name: str) -> tuple[str, ...]:
    """Return the labels of a metric that a collector of ours holds, and that nothing has been counted on yet."""
    held = [value for value in vars(collector).values() if isinstance(value, MetricWrapperBase)]
    return next((tuple(one._labelnames) for one in held if one._name == name), ())  # noqa: SLF001 - as above


def metrics_page(metrics: Sequence[Told]) -> str:
    """Return docs/reference/metrics.md; the library's own metrics differ from platform to platform and are left out."""
    own = sorted((one for one in metrics if not one.name.startswith(("process_", "python_"))), key=lambda one: one.name)
    rows = [(code(one.name), one.kind, ", ".join(map(code, one.labels)), one.meaning) for one in own]
    return (
        f"{NOTE}# Metrics\n\n"
        "`GET /metrics` answers in the text format of Prometheus, or in OpenMetrics to who asks for it. It needs a key "
        "of the role viewer. Besides these there are the usual `process_…` (memory, processor time, open files) and "
        f"`python_info`.\n\n{table(('metric', 'type', 'labels', 'what it is'), rows)}"
    )


# Commands


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its words, groups before what is in them."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield from commands(command, (*path, name))


def cli_page() -> str:
    """Return docs/reference/cli.md."""
    text = f"{NOTE}# Command line\n\n`--help` after any command says the same.\n"
    codes = " ".join((command_line.__doc__ or "").partition("Exit codes:")[2].split())
    text += f"\nExit codes: {codes}\n"
    for path, command in commands(typer.main.get_command(command_line.app)):
        name = " ".join(("serai", *path))
        shown = [parameter for parameter in command.params if not parameter.hidden]
        arguments = [_argument(one) for one in shown if isinstance(one, typer.core.TyperArgument)]
        usage = " ".join([name, *(["[OPTIONS]"] if len(shown) > len(arguments) else []), *arguments])
        usage += " COMMAND" if hasattr(command, "commands") else ""
        text += f"\n{'##' if len(path) < 2 else '###'} {name}\n\n{inspect.cleandoc(command.help or '')}\n"
        text += f"\n    {usage}\n"
        rows = [(code(_spelled(one)), _meaning(one)) for one in shown]
        text += f"\n{table(('argument or option', 'what it is'), rows)}" if rows else ""
    return text


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _spelled(parameter: Any) -> str:
    if isinstance(parameter, typer.core.TyperArgument):
        return _argument(parameter)
    flags = ", ".join(parameter.opts) + "".join(f" / {other}" for other in parameter.secondary_opts)
    return flags if parameter.is_flag else f"{flags} {(parameter.metavar or parameter.name).upper()}"


def _meaning(parameter: Any) -> str:
    words, default = parameter.help or "", parameter.default
    if default not in (None, False, ()) and not callable(default):
        words += f" Default: {code(default)}."
    if parameter.multiple and "repeated" not in words:
        words += " May be repeated."
    return words.strip()


# Engines


def engines_page(engines: Sequence[EngineInfo]) -> str:
    """Return docs/reference/engines.md; an engine without tasks is none that a version could name."""
    shown = [one for one in engines if one.tasks]
    flags = sorted({flag for one in shown for flag in one.capabilities})
    kinds = [
        (code(one.name), _listed(one.tasks), _listed(one.device_kinds), _listed(one.formats), one.summary)
        for one in shown
    ]
    able = [(code(one.name), *("yes" if flag in one.capabilities else "" for flag in flags)) for one in shown]
    text = (
        f"{NOTE}# Engines\n\n"
        "A version names its engine in `engine`; without a name the server chooses, and tries the next one that can "
        "where one cannot load the model. A version's `engine_options` are checked against the tables below: an option "
        "that is not there is refused.\n\n"
        + table(("engine", "tasks", "devices", "weights", "what it is"), kinds)
        + "\n## What each can do\n\nA call that needs what an engine cannot do goes to one that can, or is refused "
        "with the name of the field.\n\n" + table(("engine", *map(code, flags)), able) + "\n## Options\n"
    )
    for one in shown:
        rows = [_option(field, _meanings(one.options)) for field in msgspec.structs.fields(one.options)]
        text += f"\n### {code(one.name)}\n\n"
        text += f"To install it: `{one.remedy}`\n\n" if one.remedy else ""
        text += table(("option", "default", "allowed", "what it is"), rows) if rows else "It has none.\n"
    return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _option(field: msgspec.structs.FieldInfo, meanings: dict[str, str]) -> tuple[str, str, str, str]:
    default = json.dumps(list(field.default) if isinstance(field.default, tuple) else field.default)
    return code(field.name), code(default), _type(field.type), meanings.get(field.name, "")


def _type(kind: Any) -> str:
    """Return in words what a value of this type may be."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(code(json.dumps(value)) for value in inner)
    if get_origin(kind) is tuple:
        return f"a list of {_type(inner[0])}"
    if hasattr(kind, "__metadata__"):
        bounds = {name: getattr(kind.__metadata__[0], name) for name in ("gt", "ge", "le", "lt")}
        signs = {"gt": "greater than", "ge": "at least", "le": "at most", "lt": "less than"}
        told = [f"{sign} {bounds[name]}" for name, sign in signs.items() if bounds[name] is not None]
        return ", ".join([_type(inner[0]), *told])
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def _meanings(options: type[msgspec.Struct]) -> dict[str, str]:
    """Return the first line of the text below each field."""
    body = ast.parse(inspect.getsource(options)).body[0]
    assert isinstance(body, ast.ClassDef), "it is the source of a class"
    found = {}
    for field, text in pairwise(body.body):
        is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(inspect.cleandoc(text.value.value).split())
    return found


def run(arguments: Sequence[str]) -> int:
    """Write or check, as the module's docstring says; return the exit code."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    stale = []
    for name, text in everything().items():
        path = ROOT / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(name)
            if not arguments:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
    if arguments and stale:
        sys.stderr.write(f"not what the code says: {', '.join(stale)}; run '{COMMAND}'\n")
        return 1
    sys.stdout.write("".join(f"wrote {name}\n" for name in stale))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
