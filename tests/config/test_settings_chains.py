"""Chains, thresholds and combinations in the configuration: what is refused, at which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation_assets.config.config_file import ConfigError, parse_settings

BASE = """\
corpus: {landing: ./landing}
targets:
  - {name: tiny, model: ./m, warmup: none, signals: [step_gradients]}
  - {name: base, model: ./m, warmup: WARMUP, signals: [likelihoods, embeddings_mean]}
scores:
  - {name: grace, target: tiny, method: grace}
  - {name: near, target: base, method: k_center}
subsets:
"""
WHOLE = "budget: {fraction: 1}"


def refused(*subsets: str, warmup: str = "none") -> str:
    text = BASE.replace("WARMUP", warmup) + "".join(f"  - {{{subset}}}\n" for subset in subsets)
    with pytest.raises(ConfigError) as caught:
        parse_settings(text.encode(), Path("curation.yaml"))
    return str(caught.value)


def test_a_missing_subset_is_named_where_it_is_missing() -> None:
    message = refused(
        f"name: c, from: b, score: grace, {WHOLE}", f"name: b, from: aa, score: grace, {WHOLE}",
        f"name: a, score: grace, {WHOLE}",
    )  # fmt: skip
    assert message == "curation.yaml:10: subsets.1.from: there is no subset 'aa'; did you mean 'a'?"


def test_a_circle_is_named_at_its_members() -> None:
    message = refused(f"name: d, from: c, score: grace, {WHOLE}", f"name: c, from: c, score: grace, {WHOLE}")
    assert message.startswith("curation.yaml:10: subsets.1.from: c from c is a circle.")


def test_a_round_cannot_rest_on_vectors_of_its_own_target() -> None:
    vectors = "selector: {kind: novel, vectors: near}"
    message = refused(f"name: s, score: grace, {vectors}, {WHOLE}", warmup="{release: s@1, preset: grape}")
    assert "targets.1.warmup.release: subset s is selected by target base, which is not listed before base" in message


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("score: {combine: [grace]}", "subsets.0.score.combine: must be names of scores with their weights, as in"),
        ("score: {combine: {grace: 1}, by: mean}", "subsets.0.score.by: input should be 'rank', 'zscore', 'value' or"),
        ("score: {combine: {grce: 1}}", "subsets.0.score.combine.grce: there is no score 'grce'; did you mean 'grace'"),
        (
            "score: grace, selector: {kind: novel, vectors: ner}",
            "subsets.0.selector.vectors: there is no score 'ner'; did you mean 'near'?",
        ),
        ("score: grace, selector: novel", "subsets.0.selector: novel needs embeddings, which method grace does not"),
        (
            "score: grace, filters: {scores: [{score: grace, top: 0.5, bottom: 0.5}]}",
            "subsets.0.filters.scores.0: set at_least, at_most or both, or else one of top and bottom.",
        ),
        (
            "score: grace, filters: {scores: [{score: grace, at_least: 2, at_most: 1}]}",
            "subsets.0.filters.scores.0: no value is at least 2 and at most 1. Exchange them.",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(subset: str, message: str) -> None:
    assert message in refused(f"name: s, {subset}, {WHOLE}")
