"""curation.yaml: every mistake is named with file, line, key and mend, and the defaults are the documented ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from curation_assets.config.checkpoint_settings import Warmup
from curation_assets.config.config_file import ConfigError, config_path, json_schema, load_settings, parse_settings
from curation_assets.config.settings import Settings
from curation_assets.methods.grace import GraceScore
from curation_assets.methods.grace_gram import History
from curation_assets.methods.registry import METHODS
from curation_assets.operations.init_config import FolderSummary, render_config

FILE = Path("curation.yaml")
GOOD = """\
version: 1
corpus:
  landing: ./landing
targets:
  - name: base
    model: org/model
scores:
  - name: grace
    target: base
    method: grace
subsets:
  - name: best
    score: grace
    budget:
      fraction: 0.2
"""
SECTIONS = (
    "version, corpus, warehouse, s3, targets, validation, scores, subsets, engine, limits, alerts, freshness, "
    "releases, audit, evaluation"
)


def parse(text: str | bytes) -> Settings:
    return parse_settings(text.encode() if isinstance(text, str) else text, FILE)


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return str(caught.value).splitlines()


def assert_read_or_refused(text: str) -> None:
    """Nothing but a clear error, if any."""
    messages = ["curation.yaml:"]
    try:
        parse(text)
    except ConfigError as error:
        messages = str(error).splitlines()
    assert messages[0].startswith("curation.yaml:")


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_the_good_one_is_good() -> None:
    loaded = parse(GOOD)
    assert loaded.target("base").model == "org/model"
    assert loaded.score("grace").target == "base"
    assert loaded.subset("best").budget.fraction == 0.2
    assert [score.name for score in loaded.scores_of("base")] == ["grace"]
    assert loaded.scores_of("other") == []
    for look in (loaded.target, loaded.score, loaded.subset):
        with pytest.raises(KeyError):
            look("none")


TABLE = {
    "unknown key, alike": (
        GOOD + "engine:\n  devize: cpu\n",
        "curation.yaml:17: engine.devize: unknown key; did you mean 'device'?",
    ),
    "unknown key, unlike": (GOOD + "x: 1\n", f"curation.yaml:16: x: unknown key; known keys are {SECTIONS}"),
    "a signal twice": (
        changed("    model: org/model", "    model: m\n    signals:\n    - likelihoods\n    - likelihoods"),
        "curation.yaml:9: targets.0.signals.1: 'likelihoods' is listed twice. List each signal once.",
    ),
    "no signal": (
        changed("    model: org/model", "    model: m\n    signals: []"),
        "curation.yaml:7: targets.0.signals: list should have at least 1 item after validation, not 0",
    ),
    "a score without its signal": (
        changed("    model: org/model", "    model: m\n    signals: [likelihoods]"),
        "curation.yaml:10: scores.0.target: method grace needs step_gradients, which target 'base' does "
        "not measure. Add step_gradients to its signals, or name another target.",
    ),
    "unknown key of the limits on images": (
        changed("  landing: ./landing", "  landing: ./landing\n  images: {max_pixel: 5}"),
        "curation.yaml:4: corpus.images.max_pixel: unknown key; did you mean 'max_pixels'?",
    ),
    "unknown key in a list": (
        changed("    model:", "    modell: x\n    model:"),
        "curation.yaml:6: targets.0.modell: unknown key; did you mean 'model'?",
    ),
    "unknown key in a section that may be a word": (
        changed("    model: org/model", "    model: m\n    warmup: {fracton: 0.1}"),
        "curation.yaml:7: targets.0.warmup.fracton: unknown key; did you mean 'fraction'?",
    ),
    "unknown key with a bracket": (
        GOOD + "a[b: 1\n",
        f"curation.yaml:16: a[b: unknown key; known keys are {SECTIONS}",
    ),
    "a key that is a number": (GOOD + "77: 1\n", f"curation.yaml:16: 77: unknown key; known keys are {SECTIONS}"),
    "unknown key merged from an anchor": (
        GOOD + "releases:\n  <<: {polcy: manual}\n",
        "curation.yaml:16: releases.polcy: unknown key; did you mean 'policy'?",
    ),
    "missing key": (
        changed("    model: org/model\n", ""),
        "curation.yaml:5: targets.0.model: this key is missing; add it",
    ),
    "missing section": (
        changed("corpus:\n  landing: ./landing\n", ""),
        "curation.yaml:1: corpus: this key is missing; add it",
    ),
    "wrong type": (
        changed("fraction: 0.2", "fraction: lots"),
        "curation.yaml:15: subsets.0.budget.fraction: input should be a valid number (found 'lots')",
    ),
    "a number in quotes": (
        changed("fraction: 0.2", "samples: '20'"),
        "curation.yaml:15: subsets.0.budget.samples: input should be a valid integer (found '20')",
    ),
    "yes for a number": (
        changed("fraction: 0.2", "samples: true"),
        "curation.yaml:15: subsets.0.budget.samples: input should be a valid integer (found True)",
    ),
    "a number for a text": (
        changed("landing: ./landing", "landing: 5"),
        "curation.yaml:3: corpus.landing: input should be a valid string (found 5)",
    ),
    "a section for a list": (
        GOOD.split("subsets:", maxsplit=1)[0] + "subsets: {best: 1}\n",
        "curation.yaml:11: subsets: input should be a valid list",
    ),
    "out of range": (
        changed("    method: grace", "    method: grace\n    alpha: 1.5"),
        "curation.yaml:11: scores.0.alpha: input should be less than or equal to 1 (found 1.5)",
    ),
    "not a number": (
        changed("    method: grace", "    method: grace\n    alpha: .nan"),
        "curation.yaml:11: scores.0.alpha: input should be a finite number (found nan)",
    ),
    "infinite": (
        GOOD + "engine: {part_seconds: .inf}\n",
        "curation.yaml:16: engine.part_seconds: input should be a finite number (found inf)",
    ),
    "a seed that no generator takes": (
        changed("    model: org/model", "    model: m\n    warmup: {seed: -1}"),
        "curation.yaml:7: targets.0.warmup.seed: input should be greater than or equal to 0 (found -1)",
    ),
    "one of several words": (
        changed("method: grace", "method: grce"),
        "curation.yaml:10: scores.0.method: unknown method 'grce'; did you mean 'grace'?",
    ),
    "a method that is none": (
        changed("method: grace", "method: magic"),
        "curation.yaml:10: scores.0.method: unknown method 'magic'; known values are " + ", ".join(METHODS),
    ),
    "a parameter of another method": (
        changed("method: grace", "method: random\n    alpha: 0.5"),
        "curation.yaml:11: scores.0.alpha: unknown key; known keys are name, target, method, min_steps, seed",
    ),
    "a name that is none": (
        changed("  - name: best", "  - name: Best 1"),
        "curation.yaml:12: subsets.0.name: must be a name of lower-case letters, digits and _ that "
        "starts with a letter, such as grace_20 (found 'Best 1')",
    ),
    "dangling target": (
        changed("target: base", "target: bass"),
        "curation.yaml:9: scores.0.target: there is no target 'bass'; did you mean 'base'?",
    ),
    "dangling score": (
        changed("score: grace", "score: grase"),
        "curation.yaml:13: subsets.0.score: there is no score 'grase'; did you mean 'grace'?",
    ),
    "another target": (
        changed("target: base", "target: other"),
        "curation.yaml:9: scores.0.target: there is no target 'other'; targets are base",
    ),
    "almost a signal": (
        changed("    model: org/model", "    model: m\n    signals: [step_gradients, embedding_last]"),
        "curation.yaml:7: targets.0.signals.1: unknown value 'embedding_last'; did you mean 'embeddings_last'?",
    ),
    "a language by its name": (
        changed("  landing: ./landing", "  landing: ./landing\n  filters: {languages: [english]}"),
        "curation.yaml:4: corpus.filters.languages.0: must be a two-letter language code (ISO 639-1), such as en "
        "(found 'english')",
    ),
    "a selector without embeddings": (
        changed("    score: grace", "    score: grace\n    selector: k_center"),
        "curation.yaml:14: subsets.0.selector: k_center needs embeddings, which method grace does not have. Choose "
        "a score with method embedding_similarity, k_center, less, tagcos, rds, rds_plus, s2l or temp, name such a "
        "score as the selector's vectors, or another selector.",
    ),
    "a selector without a validation set": (
        changed("    score: grace", "    score: grace\n    selector: {kind: round_robin}"),
        "curation.yaml:14: subsets.0.selector: round_robin needs validation samples, which method grace does not "
        "have. Choose a score with method embedding_similarity, less, rds or rds_plus, or another selector.",
    ),
    "a score without its signals": (
        changed("method: grace", "method: ifd"),
        "curation.yaml:9: scores.0.target: method ifd needs likelihoods, unconditional_likelihoods, which target "
        "'base' does not measure. Add likelihoods, unconditional_likelihoods to its signals, or name another target.",
    ),
    "duplicate name": (
        GOOD + "  - {name: best, score: grace, budget: {samples: 1}}\n",
        "curation.yaml:16: subsets.1.name: the name 'best' is used twice. Choose distinct names.",
    ),
    "a score named like a column": (
        changed("  - name: grace", "  - name: row"),
        "curation.yaml:8: scores.0.name: 'row' is a column of sample_scores. Choose another name.",
    ),
    "two budgets": (
        changed("fraction: 0.2", "fraction: 0.2\n      tokens: 5"),
        "curation.yaml:14: subsets.0.budget: set exactly one of fraction, samples and tokens",
    ),
    "no budget": (
        changed("budget:\n      fraction: 0.2", "budget: {}"),
        "curation.yaml:14: subsets.0.budget: set exactly one of fraction, samples and tokens",
    ),
    "two histories": (
        changed("    method: grace", "    method: grace\n    history: {window: 2, ema: 0.5}"),
        "curation.yaml:11: scores.0.history: set exactly one of window and ema, or history: uniform",
    ),
    "columns of unequal length": (
        changed("landing: ./landing", "landing: x\n  columns: {response: [a, b], correct: [true]}"),
        "curation.yaml:4: corpus.columns: correct lists 1 paths, but response lists 2 paths. "
        "Give one entry per response (null for no value).",
    ),
    "columns listed for one response": (
        changed("landing: ./landing", "landing: x\n  columns: {response: a, reward: [r]}"),
        "curation.yaml:4: corpus.columns: reward lists 1 paths, but response lists no paths. "
        "Give one entry per response (null for no value).",
    ),
    "bad YAML": (
        GOOD + "engine: {device: cpu\n",
        "curation.yaml:17: not valid YAML: expected ',' or '}', but got '<stream end>'",
    ),
    "bad indentation": (
        changed("    model:", "   model:"),
        "curation.yaml:6: not valid YAML: expected <block end>, but found '<block mapping start>'",
    ),
    "a tab": (
        GOOD + "engine:\n\tdevice: cpu\n",
        "curation.yaml:17: not valid YAML: found character '\\t' that cannot start any token",
    ),
    "the same key twice": (
        GOOD + "engine:\n  device: cpu\n  device: cuda\n",
        'curation.yaml:18: not valid YAML: found duplicate key "device" with value "cuda" (original value: "cpu")',
    ),
    "two documents": (GOOD + "---\na: 1\n", "curation.yaml:16: not valid YAML: but found another document"),
    "an anchor that is not there": (
        GOOD + "engine: *e\n",
        "curation.yaml:16: not valid YAML: found undefined alias 'e'",
    ),
    "a list for a section": (
        GOOD + "releases: [policy]\n",
        "curation.yaml:16: releases: must be a section with the keys policy, licenses",
    ),
    "an abyss": ("[" * 1200, "curation.yaml:1: nested too deeply, or inside itself. Write it without anchors."),
    "empty": ("", f"curation.yaml:1: must be a mapping with the keys {SECTIONS}"),
    "only comments": ("# nothing\n", f"curation.yaml:1: must be a mapping with the keys {SECTIONS}"),
    "a list": ("- corpus\n", f"curation.yaml:1: must be a mapping with the keys {SECTIONS}"),
    "a word": ("corpus", f"curation.yaml:1: must be a mapping with the keys {SECTIONS}"),
}


@pytest.mark.parametrize("case", TABLE)
def test_a_mistake_is_named_with_line_key_and_mend(case: str) -> None:
    text, message = TABLE[case]
    assert mistakes(text) == [message]


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    for byte in (b"\xff", b"\x07"):
        (message,) = mistakes(GOOD.encode() + b"engine: {device: " + byte + b"}\n")
        assert message.startswith("curation.yaml:16: not valid YAML: ")
        assert message.endswith("; save the file as UTF-8 text")


def test_several_mistakes_are_all_named() -> None:
    text = GOOD.replace("landing: ./landing", "landing: 5").replace("fraction: 0.2", "fraction: 2") + "x: 1\n"
    assert [message.split(": ")[0] for message in mistakes(text)] == [
        "curation.yaml:3",
        "curation.yaml:15",
        "curation.yaml:16",
    ]


def test_a_dangling_score_where_there_are_none() -> None:
    (message,) = mistakes(
        "corpus: {landing: x}\ntargets: [{name: a, model: m}]\nsubsets: [{name: s, score: g, budget: {samples: 1}}]"
    )
    assert message == "curation.yaml:3: subsets.0.score: there is no score 'g'; scores are (none)"


@pytest.mark.parametrize("written", ["none", "null", "", "~"])
def test_no_warm_up_in_every_way_to_write_it(written: str) -> None:
    assert parse(changed("model: org/model", f"model: m\n    warmup: {written}")).targets[0].warmup == "none"


def test_a_strategy_alone_stands_for_the_section() -> None:
    segmentation = parse(changed("landing: ./landing", "landing: x\n  segmentation: lines")).corpus.segmentation
    assert (segmentation.strategy, segmentation.max_steps) == ("lines", 64)


def test_numbers_as_people_write_them() -> None:
    text = changed("model: org/model", "model: m\n    warmup: {learning_rate: 1e-4, fraction: 1}")
    warmup = parse(text).targets[0].warmup
    assert isinstance(warmup, Warmup)
    assert (warmup.learning_rate, warmup.fraction) == (1e-4, 1.0)


def test_columns_of_several_responses() -> None:
    columns = parse(
        changed(
            "landing: ./landing",
            "landing: x\n  columns: {response: [a, b.c], correct: [true, ok], generator: [null, g]}",
        )
    ).corpus.columns
    assert columns.response == ["a", "b.c"]
    assert columns.correct == [True, "ok"]
    assert columns.generator == [None, "g"]


def test_the_defaults_are_those_of_the_methods() -> None:
    loaded = parse(GOOD)
    score, warmup = loaded.scores[0], loaded.targets[0].warmup
    assert isinstance(score, GraceScore)
    assert (score.alpha, score.history, score.min_steps, score.preset) == (0.7, "uniform", 2, None)
    assert isinstance(warmup, Warmup)
    assert (warmup.fraction, warmup.preset) == (0.05, "grace")
    recipe = warmup.recipe()
    assert (recipe.lora_rank, recipe.lora_alpha) == (8, 32)
    assert (recipe.learning_rate, recipe.epochs, recipe.warmup_ratio) == (1e-4, 1, 0.05)
    segmentation = loaded.corpus.segmentation
    assert (segmentation.strategy, segmentation.min_step_words, segmentation.max_steps) == ("auto", 3, 64)
    assert loaded.releases.policy == "manual"
    assert not loaded.targets[0].trust_remote_code


@pytest.mark.parametrize(("written", "expected"), [("", 8), ("\n    min_steps: 3", 3), ("\n    min_steps: 2", 2)])
def test_the_papers_preset_and_what_wins_over_it(written: str, expected: int) -> None:
    assert parse(changed("method: grace", f"method: grace\n    preset: paper{written}")).scores[0].min_steps == expected


def test_histories() -> None:
    for written, expected in (
        ("{window: 3}", History(window=3)),
        ("{ema: 0.5}", History(ema=0.5)),
        ("uniform", "uniform"),
    ):
        score = parse(changed("method: grace", f"method: grace\n    history: {written}")).scores[0]
        assert isinstance(score, GraceScore)
        assert score.history == expected


def test_settings_do_not_change_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(parse(GOOD), "warehouse", "elsewhere")  # noqa: B010 - as code that is not typed would


# Whatever is in the file


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf[")
@example(b"? {a: b}\n: 3")
@example(b"!!int x")
@example(b"!!omap {a: 1}")
@example(b"a: !!timestamp 2001-99-99")
@example(b"%YAML 9.9\n---")
def test_arbitrary_bytes_are_a_clear_error(data: bytes) -> None:
    assert all(line for line in mistakes(data))


syntax = st.lists(
    st.sampled_from(
        ["corpus", "targets", "landing", "warmup", ": ", "\n", "  ", "- ", "{", "}", "[", "]", ",", "&a ", "*a",
         "<<", "!", "!!set ",
         "? ", "|", ">", "'", '"', "#", "---", "%", "none", "~", "1", ".nan", "2001-01-01", "\t", "\u0085", "题"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*found duplicate anchor")
@settings(deadline=None, max_examples=300)
@given(syntax, st.booleans())
def test_arbitrary_yaml_is_read_or_a_clear_error(text: str, after_a_good_one: bool) -> None:
    assert_read_or_refused(GOOD + text if after_a_good_one else text)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["none", "a", "grace"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *Settings.model_fields,
                    "name",
                    "model",
                    "warmup",
                    "landing",
                    "columns",
                    "response",
                    "budget",
                    "history",
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(list(Settings.model_fields)), plain, min_size=1))
def test_arbitrary_values_are_read_or_a_clear_error(document: dict[str, Any]) -> None:
    assert_read_or_refused(json.dumps(document))


# Which file


def test_the_file_that_was_given_then_the_variable_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("given.yaml", "named.yaml", "curation.yaml"):
        (tmp_path / name).write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert config_path() == tmp_path / "curation.yaml"
    monkeypatch.setenv("CURATION_CONFIG", "named.yaml")
    assert config_path() == tmp_path / "named.yaml"
    assert config_path(Path("given.yaml")) == tmp_path / "given.yaml"
    assert load_settings(config_path()) == parse(GOOD)
    with pytest.raises(ConfigError, match=r"none\.yaml: file not found\. Create one with `curate init FOLDER`"):
        config_path(Path("none.yaml"))


# JSON Schema


def schema_errors(text: str) -> list[str]:
    document = json.loads(json.dumps(YAML(typ="safe").load(text)))
    return [error.json_path for error in Draft202012Validator(json_schema()).iter_errors(document)]


def test_the_json_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"].endswith("2020-12/schema")


def test_the_json_schema_accepts_what_loads() -> None:
    look = FolderSummary(1, 10, {"messages": 1}, 1, 0, {})
    rendered = render_config(look, "./landing", "org/model")
    written = ["warmup: none", "warmup: null", "warmup: {fraction: 0.5}", "max_length: null", "template: plain"]
    targets = [changed("    model:", f"    {line}\n    model:") for line in written]
    corpora = [
        changed("landing: ./landing", f"landing: x\n  {line}")
        for line in (
            "segmentation: lines",
            "segmentation: {max_steps: 3}",
            "columns: {response: [a, b], correct: [true, c]}",
        )
    ]
    for text in (GOOD, rendered, *targets, *corpora):
        parse(text)
        assert schema_errors(text) == []


@pytest.mark.parametrize(
    "case",
    [
        "unknown key, alike",
        "unknown key in a section that may be a word",
        "missing key",
        "missing section",
        "wrong type",
        "a number in quotes",
        "yes for a number",
        "a number for a text",
        "a section for a list",
        "out of range",
        "one of several words",
        "a name that is none",
    ],
)
def test_the_json_schema_refuses_mistakes(case: str) -> None:
    assert schema_errors(TABLE[case][0])


@pytest.mark.parametrize(
    ("device", "good"),
    [
        ("auto", True),
        ("cpu", True),
        ("cuda", True),
        ("cuda:1", True),
        ("cuda:0,cuda:1", True),
        ("cuda:0, cuda:1", False),
        ("cuda,cuda:1", False),
        ("cpu,cuda:0", False),
        ("cuda:0,", False),
        ("gpu", False),
    ],
)
def test_devices(device: str, good: bool) -> None:
    text = GOOD + f'engine: {{device: "{device}"}}\n'
    if good:
        assert parse(text).engine.device == device
    else:
        assert (
            "engine.device: must be auto, cpu, cuda, or numbered CUDA devices such as cuda:1 or cuda:0,cuda:1"
            in mistakes(text)[0]
        )


def test_signals_and_limits_have_defaults() -> None:
    loaded = parse(GOOD)
    assert (loaded.targets[0].signals, loaded.targets[0].proxy) == (["step_gradients"], "bias")
    engine = loaded.engine
    assert (engine.attention, engine.compile, engine.head_memory_mib) == ("auto", False, None)
    assert loaded.corpus.images.model_dump() == {
        "max_pixels": 50_000_000,
        "max_bytes": 50_000_000,
        "fetch_remote": False,
    }
