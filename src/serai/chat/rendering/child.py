"""The process that renders chat templates: it can read its socket, compute, and write to it. Nothing else.

The environment is the one that transformers gives to chat templates (`utils/chat_template_utils.py`):
an immutable sandbox with trimmed blocks, loop controls, `generation` blocks, `tojson`,
`raise_exception` and `strftime_now`; `dict` and `namespace` without a way to internals.
"""

import datetime
import json
import os
import time
from collections import OrderedDict
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from serai.chat.rendering.messages import (
    HEADER_BYTES,
    MAX_OUTPUT_CHARACTERS,
    READY,
    Refused,
    Render,
    Rendered,
    Reply,
    Unknown,
    decode_request,
    framed,
)
from serai.decode.confinement import confine

MEMORY_BYTES = 512 * 2**20
CPU_SECONDS = 1200
"""Of the whole life of a child; it leaves by itself well before."""
RETIRE_SECONDS = 600
MAX_TEMPLATES = 64
MAX_MESSAGE = 300
_SOCKET = 0


class Raised(TemplateError):
    """The template refused the messages, in words of its own."""


class GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the model said, for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, and no class to climb up from."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that holds nothing whose name begins with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace holds no names that begin with an underscore")


class Templates:
    """The compiled templates, the last used ones, and the environment that they share."""

    def __init__(self) -> None:
        self._now = ""
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
        )
        self._environment.filters["tojson"] = _tojson
        self._environment.globals.update(
            raise_exception=_raise_exception, strftime_now=self._strftime_now, dict=_Dict(), namespace=_Namespace
        )

    def answer(self, request: Render) -> Reply:
        """Return the text, or why there is none. Whatever a template does, it raises nothing."""
        try:
            compiled = self._find(request)
            if compiled is None:
                return Unknown()
            self._now = request.now
            return _bounded(compiled, request.context)
        except Raised as error:
            return Refused(reason="raised", message=str(error)[:MAX_MESSAGE])
        except SecurityError:
            return Refused(reason="forbidden")
        except (TemplateSyntaxError, UndefinedError, TemplateRuntimeError) as error:
            return Refused(reason="broken", message=str(error.message or "")[:MAX_MESSAGE])
        except MemoryError:
            return Refused(reason="memory")
        except Exception as error:  # noqa: BLE001 - a template can raise anything that computing can
            return Refused(reason="broken", message=type(error).__name__)

    def _find(self, request: Render) -> Any:
        compiled = self._compiled.get(request.template)
        if compiled is not None:
            self._compiled.move_to_end(request.template)
            return compiled
        if request.source is None:
            return None
        compiled = self._compiled[request.template] = self._environment.from_string(request.source)
        while len(self._compiled) > MAX_TEMPLATES:
            self._compiled.popitem(last=False)
        return compiled

    def _strftime_now(self, form: str) -> str:
        return datetime.datetime.fromisoformat(self._now).strftime(form)


def _bounded(compiled: Any, context: dict[str, Any]) -> Reply:
    pieces, length = [], 0
    for piece in compiled.generate(context):
        length += len(piece)
        if length > MAX_OUTPUT_CHARACTERS:
            return Refused(reason="too_long")
        pieces.append(piece)
    return Rendered("".join(pieces))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise Raised(str(message))


_WARM_UP = (
    "{% for m in messages %}{{ m | tojson(indent=1) }}{{ m.x.y }}{% endfor %}",
    "{{ strftime_now('%d %B %Y') }}{{ 'a' | upper | trim }}{% set n = namespace(a=1) %}{% set n.a = 2 %}",
    "{{ raise_exception('no') }}",
    "{% for %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ 'a'.encode('utf-8').decode('latin-1') }}{{ [1, 2] | sum | string | length }}",
)
"""Used once before the child gives up opening files: what Python loads at the first use is loaded then."""


def warm_up(templates: Templates) -> None:
    """Go through the paths that load modules late, those of errors too."""
    context = {"messages": [{"role": "user"}]}
    for number, source in enumerate(_WARM_UP):
        request = Render(template=str(number), source=source, context=context, now="2026-01-01T00:00:00")
        templates.answer(request)


def _read(count: int) -> bytes:
    """Return `count` bytes; leave when the server has gone."""
    pieces, missing = [], count
    while missing:
        piece = os.read(_SOCKET, min(missing, 2**20))
        if not piece:
            os._exit(0)
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(_SOCKET, rest) :]


def main() -> None:
    """Render what comes on standard input, a socket, until it is closed."""
    parent = os.getppid()
    templates = Templates()
    warm_up(templates)
    confine(memory_bytes=MEMORY_BYTES, cpu_seconds=CPU_SECONDS, parent=parent)
    _write(READY)
    while time.process_time() < RETIRE_SECONDS:
        request = decode_request(_read(int.from_bytes(_read(HEADER_BYTES), "big")))
        reply = templates.answer(request)
        del request
        _write(framed(reply))
    os._exit(0)


if __name__ == "__main__":
    main()
