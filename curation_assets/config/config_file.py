"""Reading curation.yaml: where a mistake is, what is wrong with it, and how to mend it."""

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
"""Bytes: the parser takes seconds for so many, and for more the square of them."""

MOST_VALUES = 100_000
"""Values of a file with all that its anchors repeat; without these, LONGEST_FILE holds fewer."""

DEEPEST = 200
"""Brackets that are open at once: for many the parser takes seconds until it gives up."""

NESTED = "nested too deeply, or in itself: write it without anchors"

LONGEST_NUMBER = 64
"""Bits of a whole number."""

LONGEST_SHOWN = 200
LONGEST_MISTAKE = 1000
MOST_MISTAKES = 100
"""What of values, and of mistakes, is shown: characters, and lines."""

TAG_ERRORS = frozenset({"union_tag_invalid", "union_tag_not_found"})
DISCRIMINATORS = frozenset({"method", "kind"})
PATTERNS = {
    "^[a-z][a-z0-9_]*$": "a name of small letters, digits and _, beginning with a letter, such as grace_20",
    "^[A-Z_][A-Z0-9_]*$": "the name of an environment variable, such as CURATION_WEBHOOK",
    "^[a-z][a-z0-9_]*@[1-9][0-9]*$": "a subset and the number of its release, such as grape_1@1",
    "^[a-z]{2}$": "a language's two letters (ISO 639-1), such as en",
}


class ConfigError(UserError):
    """curation.yaml cannot be used; the message names file, line, key and mend, one line a mistake."""


def config_path(given: Path | None = None) -> Path:
    """The configuration file: the given one, else what CURATION_CONFIG names, else ./curation.yaml.

    Raises:
        ConfigError: there is no such file.
    """
    path = given or Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG))
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file; write one with `curate init FOLDER`, name it with --config, "
            f"or set {CONFIG_VARIABLE}"
        )
    return path


def load_settings(path: Path) -> Settings:
    """Read and validate a configuration file.

    Raises:
        ConfigError: the file is not YAML, or not a valid configuration.
    """
    return parse_settings(path.read_bytes(), path)


def parse_settings(data: bytes, path: Path) -> Settings:
    """Validate the bytes of a configuration file; `path` is for messages."""
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
    """The document with its lines, and as plain Python values.

    Raises:
        ConfigError: it is not YAML.
    """
    if len(data) > LONGEST_FILE:
        raise ConfigError(f"{path}:1: has {len(data):,} bytes, no configuration has more than {LONGEST_FILE:,}")
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
        raise ConfigError(f"{path}:{line}: not valid YAML: {_said(error.problem or error.context)}") from error
    except ReaderError as error:
        line = data[: error.position].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.reason}; save the file as UTF-8 text") from error
    except _TooManyError:
        raise ConfigError(
            f"{path}:1: its anchors repeat one another to more than {MOST_VALUES:,} values: write it without anchors"
        ) from None
    except RecursionError as error:
        raise ConfigError(f"{path}:1: {NESTED}") from error
    except Exception as error:  # on odd input the parser raises whatever it trips over
        raise ConfigError(f"{path}:1: not valid YAML: {_said(error)}") from error


def _depth(data: bytes) -> int:
    """How many brackets are open at once, those in texts and comments counted, too."""
    depth = deepest = 0
    for sign in re.findall(rb"[\[\]{}]", data):
        depth = depth + 1 if sign in b"[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def json_schema() -> dict[str, Any]:
    """The JSON Schema of curation.yaml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated from curation_assets/config/settings.py by `curate schema`.",
        **Settings.model_json_schema(),
    }


class _Plain:
    """The document as plain Python values, so that pydantic sees no YAML types.

    An anchor is one value to the parser, however often it is named; here it is as many, and these are counted.
    """

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def of(self, node: Any) -> Any:
        """A node as plain values.

        Raises:
            _TooManyError: there are too many.
        """
        self._left -= 1
        if self._left < 0:
            raise _TooManyError
        if isinstance(node, Mapping):
            return {str(key): self.of(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.of(value) for value in node]
        if isinstance(node, int) and node.bit_length() > LONGEST_NUMBER:
            # Python does not write such numbers out, and no key takes one.
            return float("inf")
        for kind in (bool, int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node


class _TooManyError(Exception):
    """The anchors of a file repeat too much."""


def mistakes(error: ValidationError, document: Any) -> list[tuple[list[int | str], int, str]]:
    """The mistakes of a document of settings: the keys that lead to each, its line, what is wrong and the mend."""
    found = [dict(item) for item in error.errors()]
    # Of a union of a word and a section, a mapping was meant as the section.
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
    """The part of the location that exists in the document, and its line (from 1).

    Pydantic puts names of union members into the location; those that are no keys are skipped.
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
        # What was merged in from an anchor has no line here: that of its parent is shown.
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
        hint = f"did you mean {close[0]!r}?" if close else f"known ones are {', '.join(known)}"
        return f"there is no {keys[-1]} {error['ctx']['tag']!r}; {hint}"
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
            return f"there is no {given!r} here; did you mean {close[0]!r}?"
    shown = f" (found {_short(given)})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{message[0].lower()}{message[1:]}{shown}"


def _short(value: object) -> str:
    """A value as a message shows it."""
    return shortened(repr(value), LONGEST_SHOWN)


def _said(what: object) -> str:
    """What the parser says, as a message shows it."""
    return shortened(str(what), LONGEST_SHOWN)


def _known_keys(document: Any, keys: Sequence[int | str]) -> list[str]:
    """Keys that the schema allows at a place of the document."""
    annotation: Any = Settings
    node = document
    for key in keys:
        model = _model(annotation, node)
        if isinstance(key, int):
            annotation = next(iter(get_args(annotation)), annotation)
        elif model is not None and key in model.model_fields:
            annotation = model.model_fields[key].annotation
        node = node[key]
    model = _model(annotation, node)
    return list(model.model_fields) if model is not None else []


def _model(annotation: Any, node: Any) -> type[BaseModel] | None:
    """The section's class behind an annotation, looking into unions and lists: the one that the node says it is."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is Annotated:
        return _model(get_args(annotation)[0], node)
    if get_origin(annotation) not in (Union, types.UnionType, list):
        return None
    models = [model for argument in get_args(annotation) if (model := _model(argument, node)) is not None]
    named = [model for model in models if isinstance(node, Mapping) and _says(node, model)]
    return next(iter(named or models), None)


def _says(node: Mapping[Any, Any], model: type[BaseModel]) -> bool:
    """Whether a section's own words name the model: `method: grace`, `kind: top`."""
    return any(
        name in node and node[name] == model.model_fields[name].default
        for name in DISCRIMINATORS & {*model.model_fields}
    )
