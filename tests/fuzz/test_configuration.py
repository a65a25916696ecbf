"""Mutations of a configuration that has every key: it is read, or refused with lines that it has."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from curation_assets.config.config_file import ConfigError, parse_settings
from curation_assets.config.settings import Settings
from tests.fuzz.mutations import mutated

ROOT = Path(__file__).parent.parent.parent
PATH = Path("curation.yaml")
(WHOLE,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), flags=re.DOTALL)
SMALL = "corpus: {landing: ./landing}\ntargets:\n  - name: base\n    model: ./model\n    warmup: none\n"
LONGEST_SECONDS = 5.0
"""Reading the whole of it takes a tenth of a second or so."""


def read(data: bytes) -> Settings | str:
    """The settings, or what is wrong; every line that is named is one of the file's."""
    begun = time.process_time()
    try:
        found: Settings | str = parse_settings(data, PATH)
    except ConfigError as error:
        found = str(error)
        lines = [re.match(r"(?:curation)?\.yaml:(\d+): .", line) for line in found.split("\ncuration")]
        last = len(re.split(rb"\r\n|\n|\r|\xc2\x85|\xe2\x80\xa8|\xe2\x80\xa9", data))
        assert all(line is not None and 1 <= int(line[1]) <= last for line in lines), found
    assert time.process_time() - begun < LONGEST_SECONDS
    return found


def test_the_file_itself_is_read() -> None:
    assert isinstance(read(WHOLE.encode()), Settings)
    assert isinstance(read(SMALL.encode()), Settings)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([WHOLE.encode(), SMALL.encode()]).flatmap(mutated))
def test_mutated_bytes_are_read_or_refused(data: bytes) -> None:
    read(data)


VALUES_OF_LINES = ["", "~", "null", "true", "none", "auto", "0", "-1", "1e400", ".nan", "0x10", "1_0", "2001-01-01"]
VALUES_OF_LINES += ["12:30:45", "[]", "{}", "[[]]", "{a: b}", "*a", "&a x", "!!set {a}", "!!binary AAAA", "!x y", "|"]
VALUES_OF_LINES += ["!!omap [a: b]", ">-", "'", '"', "\t", "\u2028", "\u202e", "\x1b[2J", "題", "? [a]", "<<: {a: b}"]
VALUES_OF_LINES += ["- -", "%x", "@", "`", "x" * 5000, "9" * 5000]
WORDS = st.sampled_from(VALUES_OF_LINES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_lines_are_read_or_refused(data: st.DataObject) -> None:
    """Lines that are left out, doubled, moved, indented, or whose value is another one."""
    lines = data.draw(st.sampled_from([WHOLE, SMALL])).splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["drop", "double", "move", "indent", "value", "value", "value", "key"]))
        key, colon, value = lines[place].partition(":")
        if how == "drop" and len(lines) > 1:
            del lines[place]
        elif how == "double":
            lines.insert(place, lines[place])
        elif how == "move":
            lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(place))
        elif how == "indent":
            lines[place] = data.draw(st.sampled_from([" ", "  ", "\t", "- "])) + lines[place]
        elif how == "value" and colon:
            lines[place] = f"{key}: {data.draw(WORDS)}"
        elif how == "key":
            lines[place] = f"{data.draw(WORDS)}:{value}"
    read("\n".join(lines).encode())


DOCUMENT: Any = YAML(typ="safe", pure=True).load(WHOLE)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["base", "grace", "./model", "s3://a/b", "cuda:0", "../..", "a" * 200]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to every value of a document."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [path, *(place for key in keys for place in places(node[key], (*path, key)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a place."""
    if not path:
        return value
    if isinstance(node, dict):
        return node | {path[0]: replaced(node[path[0]], path[1:], value)}
    return [replaced(item, path[1:], value) if place == path[0] else item for place, item in enumerate(node)]


PLACES = places(DOCUMENT)[1:]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(PLACES), VALUES, st.booleans())
@example(("limits", "tokens"), 2**64, True)
@example(("limits",), {"tokens": 10**400}, True)
@example(("targets", 0, "name"), "\x1b[2J\u202e", False)
def test_any_value_in_any_place_is_taken_or_refused(path: tuple[Any, ...], value: Any, flow: bool) -> None:
    document = replaced(DOCUMENT, path, value)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = flow
    yaml.allow_unicode = True
    stream = io.BytesIO()
    yaml.dump(document, stream)
    read(stream.getvalue())


@pytest.mark.parametrize("value", [{}, 2**70], ids=repr)
def test_every_place_takes_or_refuses_what_is_of_another_kind(value: Any) -> None:
    for path in PLACES:
        read(json.dumps(replaced(DOCUMENT, path, value)).encode())
