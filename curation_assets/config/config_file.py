"""Read curation.yaml, and report each mistake with its line, its cause and the fix."""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from curation_assets.config.settings import Settings
from curation_resources.errors import UserError
from curation_resources.sections import LocatedError
from curation_resources.text import shortened

CONFIG_VARIABLE = "CURATION_CONFIG"
DEFAULT_CONFIG = "curation.yaml"
LONGEST_FILE = 2**17
"""Bytes: the parser takes seconds for this many, and its time grows with the square."""

MOST_VALUES = 100_000
"""Maximum number of values, including those that anchors repeat; without anchors, LONGEST_FILE cannot hold this
many."""

DEEPEST = 200
"""Maximum number of open brackets: the parser takes seconds to give up on many."""

NESTED = "nested too deeply, or inside itself. Write it without anchors."

LONGEST_NUMBER = 64
"""Bits of an integer."""

LONGEST_SHOWN = 200
LONGEST_MISTAKE = 1000
MOST_MISTAKES = 100
"""Limits on what messages show: characters of a value, characters of a mistake, and number of mistakes."""

TAG_ERRORS = frozenset({"union_tag_invalid", "union_tag_not_found"})
DISCRIMINATORS = frozenset({"method", "kind"})
PATTERNS = {
    "^[a-z][a-z0-9_]*$": "a name of lower-case letters, digits and _ that starts with a letter, such as grace_20",
    "^[A-Z_][A-Z0-9_]*$": "the name of an environment variable, such as CURATION_WEBHOOK",
    "^[a-z][a-z0-9_]*@[1-9][0-9]*$": "a subset and its release number, such as grape_1@1",
    "^[a-z]{2}$": "a two-letter language code (ISO 639-1), such as en",
}


class ConfigError(UserError):
    """curation.yaml cannot be used; the message has one line per mistake with file, line, key and fix."""


def config_path(given: Path | None = None) -> Path:
    """Return the configuration file: the given one, else the one in CURATION_CONFIG, else ./curation.yaml.

    Raises:
        ConfigError: the file does not exist.
    """
    path = given or Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG))
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ConfigError(
            f"{path}: file not found. Create one with `curate init FOLDER`, pass --config, or set {CONFIG_VARIABLE}."
        )
    return path


def load_settings(path: Path) -> Settings:
    """Read and validate a configuration file.

    Raises:
        ConfigError: the file is not YAML, or not a valid configuration.
    """
    return parse_settings(path.read_bytes(), path)


def parse_settings(data: bytes, path: Path) -> Settings:
    """Validate the bytes of a configuration file; `path` is only used in messages."""
    document, plain = _read_yaml(data, path)
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}:1: must be a mapping with the keys {', '.join(Settings.model_fields)}")
    try:
        return Settings.model_validate(plain)
    except ValidationError as error:
        found = dict.fromkeys(
            shortened(f"{path}:{line}: {'.'.join(map(str, keys)) or 'curation.yaml'}: {reason}", LONGEST_MISTAKE)
            for keys, line, reason in mistakes(error, document)
        )
        more = [f"and {len(found) - MOST_MISTAKES:,} more"] if len(found) > MOST_MISTAKES else []
        raise ConfigError("\n".join([*list(found)[:MOST_MISTAKES], *more])) from error


def _read_yaml(data: bytes, path: Path) -> tuple[Any, Any]:
    """Return the document with its line numbers, and the same document as plain Python values.

    Raises:
        ConfigError: it is not YAML.
    """
    if len(data) > LONGEST_FILE:
        raise ConfigError(f"{path}:1: has {len(data):,} bytes, but a configuration may have at most {LONGEST_FILE:,}")
    if _depth(data) > DEEPEST:
        raise ConfigError(f"{path}:1: {NESTED}")
    try:
        yaml = YAML(typ="rt")
        yaml.composer.warn_double_anchors = False
        document = yaml.load(data)
        return document, _Plain().of(document)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {_parser_message(error.problem or error.context)}"
        ) from error
    except ReaderError as error:
        line = data[: error.position].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.reason}; save the file as UTF-8 text") from error
    except _TooManyError:
        raise ConfigError(
            f"{path}:1: its anchors repeat each other and expand to over {MOST_VALUES:,} values. "
            "Write it without anchors."
        ) from None
    except RecursionError as error:
        raise ConfigError(f"{path}:1: {NESTED}") from error
    except Exception as error:  # the parser raises arbitrary exceptions on malformed input
        raise ConfigError(f"{path}:1: not valid YAML: {_parser_message(error)}") from error


def _depth(data: bytes) -> int:
    """Return the maximum number of brackets open at once, including those in strings and comments."""
    depth = deepest = 0
    for sign in re.findall(rb"[\[\]{}]", data):
        depth = depth + 1 if sign in b"[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of curation.yaml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated from curation_assets/config/settings.py by `curate schema`.",
        **Settings.model_json_schema(),
    }


class _Plain:
    """Converts the document to plain Python values, so that pydantic sees no YAML types.

    The parser holds an anchor as one value, however often it is referenced; here each reference is a copy, and
    copies are counted.
    """

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def of(self, node: Any) -> Any:
        """Return a node as plain values.

        Raises:
            _TooManyError: the document has too many values.
        """
        self._left -= 1
        if self._left < 0:
            raise _TooManyError
        if isinstance(node, Mapping):
            return {str(key): self.of(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.of(value) for value in node]
        if isinstance(node, int) and node.bit_length() > LONGEST_NUMBER:
            # Python refuses to print such integers, and no key accepts one.
            return float("inf")
        for kind in (bool, int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node


class _TooManyError(Exception):
    """The file's anchors expand to too many values."""


def mistakes(error: ValidationError, document: Any) -> list[tuple[list[int | str], int, str]]:
    """Return the mistakes in a settings document: the keys that lead to each, its line, and the message."""
    found = [dict(item) for item in error.errors()]
    # In a union of a word and a section, a mapping is meant as the section.
    relevant = [m for m in found if not (m["type"] == "literal_error" and isinstance(m["input"], dict))]
    return [_mistake(document, item) for item in relevant or found]


def _mistake(document: Any, error: dict[str, Any]) -> tuple[list[int | str], int, str]:
    location = list(error["loc"])
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, LocatedError):
        location += cause.location
    if error["type"] in TAG_ERRORS:
        location.append(str(error["ctx"]["discriminator"]).strip("'"))
    keys, line = _locate(document, location)
    if error["type"] in {"missing", "union_tag_not_found"}:
        keys.append(location[-1])
    return keys, line, _reason(document, error, keys)


def _locate(document: Any, location: Sequence[int | str]) -> tuple[list[int | str], int]:
    """Return the part of the location that exists in the document, and its line (from 1).

    Pydantic includes names of union members in the location; parts that are not keys are skipped.
    """
    keys: list[int | str] = []
    node = document
    line = 1
    for part in location:
        names = {str(key): key for key in node} if isinstance(node, Mapping) else {}
        if isinstance(part, str) and part in names:
            key = names[part]
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            key = part
        else:
            continue
        # Values merged in from an anchor have no line here; use the line of their parent.
        places = getattr(getattr(node, "lc", None), "data", None) or {}
        line = places[key][0] + 1 if key in places else line
        node = node[key]
        keys.append(part)
    return keys, line


def _reason(document: Any, error: dict[str, Any], keys: Sequence[int | str]) -> str:
    kind, message = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        known = _known_keys(document, keys[:-1])
        close = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"
        return f"unknown key; {hint}"
    if kind == "union_tag_invalid":
        known = [tag.strip("'") for tag in error["ctx"]["expected_tags"].split(", ")]
        close = difflib.get_close_matches(error["ctx"]["tag"], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known values are {', '.join(known)}"
        return f"unknown {keys[-1]} {error['ctx']['tag']!r}; {hint}"
    if kind in {"missing", "union_tag_not_found"}:
        return "this key is missing; add it"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in {"model_type", "model_attributes_type"}:
        return f"must be a section with the keys {', '.join(_known_keys(document, keys))}"
    return _reason_against_a_value(error)


def _reason_against_a_value(error: dict[str, Any]) -> str:
    kind, message, given = error["type"], str(error["msg"]), error.get("input")
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] in PATTERNS:
        return f"must be {PATTERNS[error['ctx']['pattern']]} (found {_short(given)})"
    if kind == "literal_error" and isinstance(given, str):
        close = difflib.get_close_matches(given, re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        if close:
            return f"unknown value {given!r}; did you mean {close[0]!r}?"
    shown = f" (found {_short(given)})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{message[0].lower()}{message[1:]}{shown}"


def _short(value: object) -> str:
    """Return a value in the form that messages show."""
    return shortened(repr(value), LONGEST_SHOWN)


def _parser_message(what: object) -> str:
    """Return the parser's message in the form that our messages show."""
    return shortened(str(what), LONGEST_SHOWN)


def _known_keys(document: Any, keys: Sequence[int | str]) -> list[str]:
    """Return the keys that the schema allows at a place in the document."""
    annotation: Any = Settings
    node = document
    for key in keys:
        model = _model(annotation, node)
        if isinstance(key, int):
            annotation = next(iter(get_args(annotation)), annotation)
        elif model is not None:
            fields = {field.alias or name: field for name, field in model.model_fields.items()}
            annotation = fields[key].annotation if key in fields else annotation
        node = node[key]
    model = _model(annotation, node)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _model(annotation: Any, node: Any) -> type[BaseModel] | None:
    """Return the section's class behind an annotation, searching unions and lists for the one that the node names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return _model(get_args(annotation)[0], node)
    if get_origin(annotation) not in (Union, types.UnionType, list):
        return None
    models = [model for argument in get_args(annotation) if (model := _model(argument, node)) is not None]
    named = [model for model in models if isinstance(node, Mapping) and _names_model(node, model)]
    return next(iter(named or models), None)


def _names_model(node: Mapping[Any, Any], model: type[BaseModel]) -> bool:
    """Return whether a section names this model: `method: grace`, `kind: top`."""
    return any(
        name in node and node[name] == model.model_fields[name].default
        for name in DISCRIMINATORS & {*model.model_fields}
    )
