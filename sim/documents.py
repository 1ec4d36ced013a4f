"""YAML files with line numbers, checked against a pydantic schema, refused in one line a person can act on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from sim.errors import ConfigError

KeyPath = tuple[str | int, ...]
_MOST_NODES = 200_000
"""Values that a YAML file may hold. References (`*a`) count as often as they stand: nine of nine of nine ... soon
outgrow any memory."""
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """What a YAML file says (`data`) and on which line each key stands.

    `origins` says where keys were written that do not stand in the file: `--set`, or a server's log.
    """

    path: Path | None
    data: dict[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    origins: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def line(self, key: KeyPath) -> int | None:
        """The line of a key, or of its nearest parent that is written in the file."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key[:-1]
        return None

    def place(self, key: KeyPath) -> dict[str, Any]:
        """`file`, `line` and `key` of a ConfigError about this key."""
        parts = tuple(map(str, key))
        dotted = ".".join(parts) or None
        for written, origin in self.origins.items():
            # A key that only exists because one below it was set was written there, too.
            inherited = parts and key not in self.lines and written[: len(parts)] == parts
            if parts[: len(written)] == written or inherited:
                return {"file": origin, "line": None, "key": dotted}
        return {"file": self.path, "line": self.line(key), "key": dotted}

    def error(self, key: KeyPath, problem: str, **details: Any) -> ConfigError:
        """A ConfigError that points at this file, line and key."""
        return ConfigError(problem, **self.place(key), **details)

    @contextmanager
    def blamed(self, key: KeyPath, under: KeyPath = ()) -> Iterator[None]:
        """What goes wrong inside and names no file is said of this one, at `key`.

        An error that names a key of its own keeps it when that key is written here below `under`.
        """
        try:
            yield
        except ConfigError as error:
            if error.file is not None:
                raise
            own = (*under, *(error.key or "").split("."))
            raise error.placed(**self.place(own if own in self.lines or own in self.origins else key)) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with one repair: 1e-3 and 5e12 are numbers, as everyone expects."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Text that no file could hold (half a surrogate pair) is refused here, with a ValueError."""
        text = super().construct_scalar(node)
        text.encode()
        return text


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


# What pydantic calls a "valid dictionary or instance of EngineSpec" is a mapping to people.
_WANTED = {"model_type": "a mapping", "model_attributes_type": "a mapping", "dict_type": "a mapping",
           "string_type": "text"}  # fmt: skip


def load_yaml(path: str | Path) -> Document:
    """Read a YAML mapping. Raises ConfigError when it is unreadable, not a mapping, or repeats a key."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({_reason(error)})", file=path) from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path | None = None) -> Document:
    """The same from a string."""
    lines: dict[KeyPath, int] = {}
    with _yaml_errors(path):
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError("is empty; expected a mapping of keys", file=path)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError("must be a mapping of keys to values", file=path, line=node.start_mark.line + 1)
        _collect_lines(node, (), lines, path)
        data = loader.construct_document(node)
    return Document(path, data, lines)


def parse_value(text: str) -> Any:
    """One value as it may stand after a colon: `0.5`, `[1, 2]`, `{kind: poisson, rate: 8}`. Raises ConfigError."""
    with _yaml_errors(None):
        return yaml.load(text, _Loader)


def parse_json(text: str, path: Path | None = None, line: int | None = None) -> Any:
    """The value in a JSON text; `line` is where it stands when it is one of many in a file. Raises ConfigError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not valid JSON ({error.msg})", file=path, line=line or error.lineno) from error
    except RecursionError:
        raise ConfigError("is not valid JSON (nested too deeply)", file=path, line=line) from None
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"is not valid JSON ({str(error).split(';')[0]})", file=path, line=line) from error


@contextmanager
def _yaml_errors(path: Path | None) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark and path else None
        raise ConfigError(f"is not valid YAML: {error.problem or error.context}", file=path, line=line) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"is not valid YAML: {error.reason}", file=path) from error
    except RecursionError:
        raise ConfigError("is nested too deeply, or refers to itself", file=path) from None
    except ValueError as error:  # a date such as 2024-13-45, an integer of thousands of digits
        raise ConfigError(f"is not valid YAML: {str(error).split(';')[0]}", file=path) from error


def _collect_lines(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], path: Path | None) -> None:
    if len(lines) > _MOST_NODES:
        raise ConfigError(f"holds more than {_MOST_NODES:,} values", file=path)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = (*at, str(key_node.value))
            if key in lines:
                again = key_node.start_mark.line + 1
                raise ConfigError("is written twice", file=path, line=again, key=".".join(map(str, key)))
            lines[key] = key_node.start_mark.line + 1
            _collect_lines(value_node, key, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*at, i)] = item.start_mark.line + 1
            _collect_lines(item, (*at, i), lines, path)


def validate(schema: type[Model], document: Document, at: KeyPath = (), data: Any = None) -> Model:
    """`document.data` as an instance of `schema`. Raises ConfigError for the first thing that is wrong.

    Unknown keys are answered with the nearest valid ones. `at` says where in the document `data` stands, when it is
    a part of it.
    """
    try:
        data = document.data if data is None else data
        return schema.model_validate(data)
    except ValidationError as error:
        raise _explain(schema, document, at, data, error) from None


def _explain(
    schema: type[BaseModel], document: Document, at: KeyPath, data: Any, error: ValidationError
) -> ConfigError:
    # Unknown keys first: a misspelt key usually causes the "missing" error beside it.
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    location = tuple(x for x in first["loc"] if not _is_union_label(x))
    kind, shown = first["type"], first.get("input")
    key = (*at, *_written(location, data, keep_last=kind == "missing"))
    if kind == "extra_forbidden":
        return document.error(key, "unknown key", choices=_fields(schema, location[:-1]))
    if kind == "missing":
        return document.error(key, "is required but missing")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(document, key, shown, first.get("ctx", {}))
    if kind in ("literal_error", "enum"):
        expected = str(first.get("ctx", {}).get("expected", ""))
        return document.error(key, "is not a valid choice", value=shown, choices=_split_choices(expected))
    if kind == "invalid_key":
        return document.error((*at, *map(str, location)), "a key must be text; put it in quotes")
    details = {} if isinstance(shown, (dict, list)) or first["loc"][-1:] == ("[key]",) else {"value": shown}
    wanted = [_WANTED[p["type"]] for p in problems if p["type"] in _WANTED and p.get("input") is shown]
    if kind in _WANTED:
        expected = " or ".join(dict.fromkeys(wanted))
        return document.error(key, f"is empty; expected {expected}" if shown is None else f"expected {expected}",
                              **({} if shown is None else details))  # fmt: skip
    message = str(first["msg"]).removeprefix("Value error, ")
    return document.error(key, message[:1].lower() + message[1:], **details)


def _wrong_tag(document: Document, key: KeyPath, shown: Any, ctx: Mapping[str, Any]) -> ConfigError:
    """A mapping whose `kind` chooses among several: the kind is unknown, or not written."""
    if "tag" not in ctx:
        return document.error((*key, "kind"), "is required but missing")
    choices = [tag for tag in _split_choices(str(ctx.get("expected_tags", ""))) if not _is_union_label(tag)]
    return document.error((*key, "kind"), "is not a valid choice", value=ctx["tag"], choices=choices)


def _written(location: KeyPath, data: Any, *, keep_last: bool) -> KeyPath:
    """The location without what pydantic adds and nobody wrote: the tag of the branch of a union."""
    kept: list[str | int] = []
    for part in location:
        is_item = isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        if is_item or (isinstance(data, Mapping) and part in data):
            kept, data = [*kept, part], data[part]
    missing = keep_last and location and (not kept or kept[-1] != location[-1])
    return (*kept, location[-1]) if missing else tuple(kept)


def _is_union_label(part: str | int) -> bool:
    """Pydantic puts the branch of a union ('int', 'function-after[...]') into the location; nobody wrote that key."""
    return isinstance(part, str) and ("[" in part or part in ("int", "float", "str", "bool", "dict"))


def _split_choices(expected: str) -> list[str]:
    return [word.strip().strip("'\"") for word in expected.replace(" or ", ", ").split(",") if word.strip()]


def _fields(schema: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys that are valid at a location inside a schema."""
    here: Any = schema
    for part in location:
        candidates = _models(here)
        here = next((m.model_fields[str(part)].annotation for m in candidates if str(part) in m.model_fields), None)
        if here is None:
            here = next((m for m in candidates if _is_branch(m, part)), candidates[0] if candidates else None)
    return [f.alias or name for m in _models(here) for name, f in m.model_fields.items()]


def _is_branch(model: type[BaseModel], label: str | int) -> bool:
    """Whether pydantic calls this member of a union so: by its class, or by the value of its discriminator."""
    return model.__name__ == label or any(label in get_args(f.annotation) for f in model.model_fields.values())


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [m for arg in get_args(annotation) for m in _models(arg)]


def _reason(error: Exception) -> str:
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(getattr(error, "strerror", "") or error)


def canonical_json(data: Any) -> str:
    """JSON with sorted keys: the same content is always the same bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
