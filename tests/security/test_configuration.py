"""A curation.yaml that is made to take all memory or time, or to run something, is refused with its line."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from curation_assets.config.config_file import LONGEST_FILE, ConfigError, parse_settings

PATH = Path("curation.yaml")
SOUND = "corpus: {landing: ./landing}\ntargets:\n  - {name: base, model: ./model, warmup: none}\n"


def laughs(first: str, next_one: str, count: int = 40) -> str:
    """Values each of which names the one before twice: two to the power of their count."""
    lines = [f"a0: &a0 {first}\n", *(f"a{n}: &a{n} {next_one.replace('*', f'*a{n - 1}')}\n" for n in range(1, count))]
    return "".join(lines)


def message_of(text: str | bytes, seconds: float = 10.0) -> str:
    data = text.encode() if isinstance(text, str) else text
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse_settings(data, PATH)
    assert time.process_time() - begun < seconds
    message = str(caught.value)
    assert message.startswith("curation.yaml:")
    assert len(message) < 50_000
    assert max(map(len, message.splitlines())) <= 1000
    return message


REPEATED: dict[str, str] = {
    "lists": laughs("[x, x]", "[*, *]") + SOUND,
    "mappings": laughs("{k: x}", "{l: *, r: *}") + SOUND,
    "inside a key": laughs("[x, x]", "[*, *]") + SOUND + "subsets: *a39\n",
    "inside merged keys": laughs("{k: x}", "{l: *, r: *}") + "m:\n  <<: *a39\n  n: 1\n" + SOUND,
    "wide": "a: &a [" + "x," * 20_000 + "]\nb: [" + "*a," * 20_000 + "]\n" + SOUND,
}


@pytest.mark.parametrize("name", REPEATED)
def test_anchors_that_repeat_one_another_are_refused(name: str) -> None:
    message = message_of(REPEATED[name])
    assert "repeat" in message
    assert "Write it without anchors" in message


def test_keys_merged_again_and_again_are_bounded() -> None:
    merged = laughs("{k0: x}", "\n  <<: [*, *]\n  more: x", 200)
    assert "unknown key" in message_of(merged + SOUND)
    chain = "".join(f"a{n}: &a{n}\n  <<: *a{n - 1}\n  k{n}: x\n" if n else "a0: &a0 {k0: x}\n" for n in range(300))
    assert "unknown key" in message_of(chain + SOUND, 20)


def test_anchors_are_of_use() -> None:
    shared = "corpus: {landing: ./landing}\ntargets:\n"
    shared += "  - &first {name: one, model: ./m, warmup: none}\n  - {<<: *first, name: two}\n"
    assert [target.model for target in parse_settings(shared.encode(), PATH).targets] == ["./m", "./m"]


NESTED: dict[str, Callable[[int], str]] = {
    "lists": lambda n: "a: " + "[" * n + "]" * n + "\n",
    "mappings": lambda n: "a: " + "{a: " * n + "1" + "}" * n + "\n",
    "blocks": lambda n: "- " * n + "a\n",
    "keys": lambda n: "? " * n + "a\n",
}


@pytest.mark.parametrize("name", NESTED)
def test_nesting_without_end_is_refused(name: str) -> None:
    assert "nested too deeply" in message_of(NESTED[name](5000) + SOUND)


def test_a_value_that_holds_itself_is_refused() -> None:
    for text in ("a: &a [*a]\n", "a: &a\n  b: *a\n", "a: &a\n  <<: *a\n"):
        message_of(text + SOUND)


def test_a_file_that_is_too_long_is_not_parsed() -> None:
    begun = time.process_time()
    assert "bytes" in message_of(SOUND + "#" * LONGEST_FILE)
    assert time.process_time() - begun < 0.5
    parse_settings((SOUND + "#\n" * 20_000).encode(), PATH)


@pytest.mark.parametrize("number", ["0x" + "f" * 100_000, "0b" + "1" * 100_000, "9" * 5000, "1" + "_0" * 5000])
def test_numbers_that_python_will_not_write_out_are_refused(number: str) -> None:
    # Of a decimal number Python itself refuses to make one, before there is a key to name.
    where = "curation.yaml:4: limits.tokens:" if number.startswith("0") else "curation.yaml:"
    assert message_of(SOUND + f"limits: {{tokens: {number}}}\n").startswith(where)


def test_long_values_are_shortened_in_messages() -> None:
    for line in ("engine: {device: %s}\n", "engine: {kind: %s}\n", "%s: 1\n", "releases: {policy: %s}\n"):
        message_of(SOUND + line % ("x" * 100_000))
    many = message_of("".join(f"key{n}: 1\n" for n in range(5000)) + SOUND)
    assert many.splitlines()[-1] == "and 4,900 more"


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "!!python/object/new:subprocess.Popen [['touch', 'ran']]",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_tags_make_no_objects(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message_of(f"corpus: {{landing: {value}}}\ntargets: [{{name: base, model: ./m}}]\n").count(":1:")
    assert list(tmp_path.iterdir()) == []


def test_anchors_that_are_set_twice_are_no_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message_of("a: &a {}\nb: &a {}\n" + SOUND)
