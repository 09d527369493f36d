"""Hostile requests to the POST routes of an OpenAPI schema: right in form, nearly right, and no JSON at all."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

_TEXTS = (
    "",
    "\0",
    "a\0b",
    "\ud800",  # half a surrogate pair, which JSON can spell
    "\udfff tail",
    "\u202eevil\u202c \u2066isolate\u2069",  # bidirectional overrides
    "\u200b\u200d\ufeff",  # nothing to see
    "e" + "\u0301" * 400,
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "\U0010ffff\ufffe",
    "<script>alert(1)</script>",
    "%s %n {0} {input} {{",
    "aGVsbG8gd29ybGQ=" * 20,
    "\x1b[2J\r\n\tHTTP/1.1 200 OK",
    "ﷺ" * 300,  # longer in its compatibility form
    "a" * 20_000,
    "a b " * 5_000,
)
_NO_JSON = (b"", b" ", b"{", b"null", b"NaN", b"1e99999", b"1" * 5_000, b'"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"a=1")
_TYPES = ("application/json",) * 6 + (
    "application/json; charset=utf-16",
    "application/vnd.api+json",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "text/plain",
    "",
)
_DEEP = 100_000  # far over what a recursive reader survives
_OVERSIZED = (
    b"[" * _DEEP,
    b"[" * 500 + b"]" * 500,
    b'{"a":' * _DEEP,
    b"[" + b'"a",' * 20_000 + b'"a"]',
    b"[" + b"{}," * 20_000 + b"{}]",
    b"9" * 5_000,
    b"-1e400",
    b"Infinity",
    b'"' + b"\\u0000" * 5_000 + b'"',
)
_SHOWN = 300  # bytes of a body in a message


class Fuzzed(NamedTuple):
    """One request."""

    path: str
    content: bytes
    content_type: str

    def __repr__(self) -> str:
        start = repr(self.content[:_SHOWN]) + ("..." if len(self.content) > _SHOWN else "")
        return f"Fuzzed({self.path!r}, {start}, {self.content_type!r})"


def fuzzed_requests(openapi: Mapping[str, Any]) -> SearchStrategy[Fuzzed]:
    """Return requests to all POST routes that a schema names."""
    return st.one_of([_to_route(openapi, path) for path, route in openapi["paths"].items() if "post" in route])


def _to_route(openapi: Mapping[str, Any], path: str) -> SearchStrategy[Fuzzed]:
    content = openapi["paths"][path]["post"].get("requestBody", {}).get("content", {})
    schema: Mapping[str, Any] = next((each["schema"] for each in content.values()), {})
    components = openapi.get("components", {}).get("schemas", {})
    right = _of_schema(schema, components)
    top = components.get(schema.get("$ref", "").rsplit("/", 1)[-1], schema)
    fields = sorted(top.get("properties", ()))
    bodies = st.one_of(_encoded(right), _encoded(_spoiled(right)), _broken(right), _oversized(fields or ["input"]))
    return st.builds(Fuzzed, _filled(path), bodies, st.sampled_from(_TYPES))


@st.composite
def _filled(draw: st.DrawFn, path: str) -> str:
    """Put texts into the parameters of a path."""
    parts = [
        urllib.parse.quote(draw(_texts()), safe="", errors="surrogatepass")[:2_000] if part.startswith("{") else part
        for part in path.split("/")
    ]
    return "/".join(parts)


def _texts() -> SearchStrategy[str]:
    return _one_of(_TEXTS) | st.text(st.characters(exclude_categories=()), max_size=60)


def _one_of(values: Sequence[Any]) -> SearchStrategy[Any]:
    """Return one of values that Hypothesis would write out, at length, to name the strategy."""
    return st.sampled_from(range(len(values))).map(values.__getitem__)


def _any_json() -> SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | _texts()
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts(), inner, max_size=4), max_leaves=12
    )


def _of_schema(schema: Mapping[str, Any], components: Mapping[str, Any]) -> SearchStrategy[Any]:
    """Return values that a JSON schema allows, nearly: limits of number and length are left to chance."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return st.deferred(lambda: _of_schema(components[name], components))  # it may refer to itself
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return st.one_of([_of_schema(each, components) for each in schema[union]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object" if "properties" in schema:
            values = {name: _of_schema(each, components) for name, each in schema["properties"].items()}
            required = {name: values.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=values)
        case "object":
            return st.dictionaries(_texts(), _any_json(), max_size=4)
        case "array":
            return st.lists(_of_schema(schema.get("items", {}), components), max_size=6)
        case "string":
            return _texts()
        case "integer":
            return st.integers()
        case "number":
            return st.floats()
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return _any_json()


@st.composite
def _spoiled(draw: st.DrawFn, values: SearchStrategy[Any]) -> Any:
    """Exchange one place of a value, whatever its depth, for something else."""
    value = draw(values)
    if isinstance(value, dict | list) and value and draw(st.booleans()):
        place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value[place] = draw(_spoiled(st.just(value[place])))
        return value
    return draw(_any_json())


@st.composite
def _encoded(draw: st.DrawFn, values: SearchStrategy[Any]) -> bytes:
    value = draw(values)
    if draw(st.booleans()):
        return json.dumps(value).encode()
    # Half surrogate pairs become bytes that are no UTF-8.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@st.composite
def _broken(draw: st.DrawFn, values: SearchStrategy[Any]) -> bytes:
    """Return JSON that is cut, has a foreign byte in it or is in another encoding; or none at all."""
    content = json.dumps(draw(values)).encode()
    place = draw(st.integers(0, len(content)))
    foreign = draw(st.sampled_from((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"\\u", b'"')))
    ways = [
        content[:place],
        content[:place] + foreign + content[place:],
        content.decode().encode("utf-16"),
        content * 2,
    ]
    return draw(_one_of((*ways, *_NO_JSON)) | st.binary(max_size=100))


@st.composite
def _oversized(draw: st.DrawFn, fields: Sequence[str]) -> bytes:
    """Return a field with a value that is far too deep, long or large, or that is there twice."""
    name = json.dumps(draw(st.sampled_from(fields))).encode()
    value = draw(_one_of(_OVERSIZED) | st.just(b'"a", ' + name + b': ["b"]'))
    return b"{" + name + b": " + value + b"}"
