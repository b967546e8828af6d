"""Forms with pictures: read within bounds, their texts made the values that a JSON body would hold."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serai.api.body import check_text, parse_json
from serai.api.errors import of_validation
from serai.api.uploads import BINARY
from serai.api.wire import Wire
from serai.errors import InvalidInput, MalformedRequest, UnsupportedMedia

MAX_FIELDS = 40
MAX_FIELD_BYTES = 64 * 1024
MAX_FILES = 17
"""As many pictures and a mask as OpenAI takes: we take one, and can say so."""
_PLAIN = frozenset({
    *("prompt", "negative_prompt", "model", "size", "user", "safety_identifier", "response_format", "quality", "style"),
    *("background", "output_format", "moderation", "complexity", "input_fidelity"),
})  # fmt: skip
"""Fields that are texts; every other one is a number, a boolean, or JSON."""

_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""What the library leaves untold of bounds on whole and other numbers."""

Body = TypeVar("Body", bound=Wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a form holds: its texts, made values, and its files."""

    values: Mapping[str, Any]
    files: Mapping[str, UploadFile]

    def as_a(self, kind: type[Body]) -> Body:
        """Return the values as a body of this kind. Raises InvalidInput."""
        try:
            return kind.model_validate(self.values)
        except ValidationError as error:
            raise of_validation(error.errors()) from None

    def picture(self, name: str) -> UploadFile:
        """Return a file that must be there. Raises InvalidInput."""
        upload = self.files.get(name)
        if upload is None:
            raise InvalidInput.at(name, "is missing: send a picture as a file of the form")
        return upload


def described(kind: type[Wire], files: Mapping[str, str]) -> dict[str, Any]:
    """Return the description of a form with the fields of `kind` and these files, of which the first must be there.

    A form has no null, and what is neither text nor number is JSON in it.
    """
    schema = kind.model_json_schema()
    kinds = schema.get("$defs", {})
    fields = {name: _of_a_form(field, kinds) for name, field in schema["properties"].items()}
    binary = {name: {**BINARY, "description": told} for name, told in files.items()}
    whole = {
        "type": "object",
        "properties": {**binary, **fields},
        "required": [next(iter(files)), *schema.get("required", ())],
        "additionalProperties": False,
    }
    as_json = {name: {"contentType": "application/json"} for name, field in fields.items() if "items" in field}
    form = {"schema": whole, **({"encoding": as_json} if as_json else {})}
    return {"required": True, "content": {"multipart/form-data": form}}


def _of_a_form(field: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a field without null, names of other schemas, and bounds in the library's own words."""
    told = {_BOUNDS.get(name, name): value for name, value in field.items() if name not in ("anyOf", "title")}
    if told.get("default", "") is None:
        del told["default"]
    options = [option for option in field.get("anyOf", ()) if option.get("type") != "null"]
    if {option.get("type") for option in options} == {"integer", "number"}:
        told["type"] = "number"
    elif len(options) == 1:
        told |= _of_a_form(options[0], kinds)
    elif options:
        told["anyOf"] = options
    if "$ref" in told.get("items", {}):
        item = kinds[told["items"]["$ref"].rpartition("/")[2]]
        inner = {name: _of_a_form(one, kinds) for name, one in item["properties"].items()}
        told["items"] = {**item, "properties": inner}
    return told


@asynccontextmanager
async def form_of(request: Request, names: frozenset[str]) -> AsyncGenerator[Form, None]:
    """Read the body, which may hold the files `names`; they are closed at the end of the block.

    Raises UnsupportedMedia, MalformedRequest, InvalidInput.
    """
    form = await _parsed(request)
    try:
        yield _sorted(form, names)
    finally:
        await form.close()


def _sorted(form: FormData, names: frozenset[str]) -> Form:
    values: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for given, value in form.multi_items():
        is_file = isinstance(value, UploadFile)
        name = given.removesuffix("[]") if is_file else given
        check_text(name, "a field's name")
        if name in values or name in files:
            raise InvalidInput.at(name[:100], "must be one picture here" if is_file else "is given twice")
        if is_file != (name in names):
            raise InvalidInput.at(name[:100], "is no file of this call" if is_file else "must be a file")
        if isinstance(value, UploadFile):
            files[name] = value
        else:
            values[name] = _value(name, value)
    return Form(values=values, files=files)


async def _parsed(request: Request) -> FormData:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMedia("The body must be a form with a file.", hint="Send 'Content-Type: multipart/form-data'.")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise UnsupportedMedia("A form must be in UTF-8.", hint="Leave the charset out of the Content-Type.")
    try:
        return await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except (HTTPException, ValueError):
        bounds = f"at most {MAX_FIELDS} fields of {MAX_FIELD_BYTES} bytes and {MAX_FILES} files"
        raise MalformedRequest("The form is malformed, or out of bounds.", hint=f"It has {bounds}.") from None


def _value(name: str, text: str) -> Any:
    check_text(text, name)
    if name in _PLAIN:
        return text
    try:
        return parse_json(text.encode(), MAX_FIELD_BYTES)
    except InvalidInput:
        raise InvalidInput.at(name[:100], "must be a number, true, false, or JSON") from None
