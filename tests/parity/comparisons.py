"""One comparison per method: our result against the stored result of the authors' code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast
from unittest import mock

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.config.settings import Target
from curation_assets.methods.less import mean_direction, weighed
from curation_assets.methods.method import ScoreInputs
from curation_assets.methods.registry import METHODS
from curation_assets.methods.selectors import s2l as s2l_selector
from curation_assets.methods.selectors import tagcos as tagcos_selector
from curation_assets.methods.selectors import temp as temp_selector
from curation_assets.methods.selectors.clusters import Clusters
from curation_assets.methods.selectors.k_center import k_center as k_center_selector
from curation_assets.methods.selectors.round_robin import round_robin
from curation_assets.methods.vectors import cosine_rows
from curation_assets.signals.requests import request_for
from curation_assets.signals.warmup import trajectory_weights
from curation_assets.tables.signals import SIGNALS
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.samples import Encoded, Request, Sample, SampleSignals
from curation_resources.scoring.spec import Template
from curation_resources.training.examples import scheduled_steps
from curation_resources.training.recipe import TAGCOS
from tests.parity.inputs import (
    LONG_TEXT,
    TEXTS,
    embeddings,
    less_inputs,
    s2l_inputs,
    sample_ids,
    tagcos_inputs,
    temp_inputs,
    token_ids,
    write_model,
)

DATA = Path(__file__).parent / "data"

TOLERANCE = 1e-5
"""Largest difference, relative for numbers above 1, that counts as agreement: fp32 rounding in another order."""


@dataclass(frozen=True)
class Comparison:
    """One result of ours against the authors'.

    Attributes:
        method: the method, and what was compared where there are several comparisons.
        measure: `jaccard` (of two selections; 1 agrees) or `difference` (the largest between numbers; 0 agrees).
        value: the index or the difference.
        repository: of the authors' code.
        commit: of the authors' code.
        note: what was replaced in their code.
    """

    method: str
    measure: Literal["jaccard", "difference"]
    value: float
    repository: str
    commit: str
    note: str

    @property
    def agrees(self) -> bool:
        """Whether both results are the same."""
        return self.value == 1.0 if self.measure == "jaccard" else self.value <= TOLERANCE


def stored(name: str) -> dict[str, Any]:
    """Return a file of `data`: repository, commit, what was run and replaced, and the expected values."""
    document: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return document


def _compared(
    method: str, document: dict[str, Any], measure: Literal["jaccard", "difference"], value: float
) -> Comparison:
    return Comparison(method, measure, value, document["repository"], document["commit"], document["replaced"])


def jaccard(ours: Iterable[int], theirs: Iterable[int]) -> float:
    """Return the Jaccard index of two selections; 1.0 for two empty ones."""
    one, other = set(ours), set(theirs)
    return len(one & other) / len(one | other) if one | other else 1.0


def difference(ours: Sequence[float] | NDArray[np.floating], theirs: Sequence[float]) -> float:
    """Return the largest difference, relative for numbers above 1; infinity for another number of values or NaN."""
    one, other = np.asarray(ours, dtype=np.float64).ravel(), np.asarray(theirs, dtype=np.float64).ravel()
    if one.shape != other.shape or not np.isfinite(one).all():
        return float("inf")
    return float((np.abs(one - other) / np.maximum(1.0, np.abs(other))).max(initial=0.0))


@contextmanager
def _clusters_of_the_authors_run(module: Any, runs: Sequence[tuple[int, Sequence[int]]]) -> Iterator[None]:
    """Replace k-means in a selector: each call returns the next labels, if it asks for as many clusters as they did."""
    left = iter(runs)

    def replay(vectors: NDArray[np.floating], clusters: int, *_: object) -> Clusters:
        wanted, labels = next(left)
        assert (wanted, len(labels)) == (clusters, len(vectors)), "the authors' code makes other clusters"
        found = np.array(labels, dtype=np.int64)
        centroids = [vectors[found == label].mean(axis=0, dtype=np.float64) for label in np.unique(found)]
        return Clusters(found, np.array(centroids))

    with mock.patch.object(module, "k_means", replay):
        yield
    assert next(left, None) is None, "the authors' code clusters more sources"


def temp() -> Iterator[Comparison]:
    """Compare 200 of 8,000 samples: difficulty filter, shares, clusters and brittleness."""
    document, inputs = stored("temp"), temp_inputs()
    ids, expected = sample_ids(len(inputs.random)), document["expected"]
    random = inputs.random.astype(np.float64)
    hard = np.flatnonzero(temp_selector.difficult(random, inputs.sources, inputs.budget))
    same = hashlib.sha256(hard.astype("<i8").tobytes()).hexdigest() == expected["survivors_sha256"]
    yield _compared("temp: difficulty filter", document, "jaccard", float(same))
    path = temp_selector.Path(inputs.early.astype(np.float64), inputs.curve.astype(np.float64))
    runs = list(zip(document["clusters"], document["labels"], strict=True))
    with _clusters_of_the_authors_run(temp_selector, runs):
        choice = temp_selector.temp(random, path, ids, inputs.domains, inputs.sources, inputs.budget, seed=0)
    yield _compared("temp", document, "jaccard", jaccard(choice.order.tolist(), expected["chosen"]))


def s2l() -> Iterator[Comparison]:
    """Compare a small budget, and one that also takes samples of tiny clusters."""
    document, inputs = stored("s2l"), s2l_inputs()
    ids = sample_ids(len(inputs.losses))
    labels = {len(own): own for own in document["labels"]}
    for budget in inputs.budgets:
        clusters, sizes = document["clusters"][str(budget)], document["sizes"][str(budget)]
        runs = [(count, labels[size]) for count, size in zip(clusters, sizes, strict=True)]
        with _clusters_of_the_authors_run(s2l_selector, runs):
            chosen = s2l_selector.s2l(inputs.losses, ids, inputs.sources, budget, inputs.clusters, seed=0)
        found = jaccard(chosen.tolist(), document["expected"][str(budget)])
        yield _compared(f"s2l: {budget} of {len(ids)}", document, "jaccard", found)


def tagcos() -> Iterator[Comparison]:
    """Compare weights of checkpoints, k-means, and the choice of a twentieth, all from the same vectors."""
    document, inputs = stored("tagcos"), tagcos_inputs()
    expected, ids = document["expected"], sample_ids(len(inputs.features))
    scheduled = scheduled_steps(inputs.trained_on, TAGCOS)
    rates = [TAGCOS.learning_rate * TAGCOS.share_of_rate(step, scheduled) for step in range(30)]
    run = {
        "recipe": TAGCOS.facts(),
        "samples": inputs.trained_on,
        "learning_rates": rates,
        "checkpoints": [10, 20, 30],
    }
    weights = trajectory_weights(run, as_logged=True)
    yield _compared("tagcos: weights", document, "difference", difference(weights, expected["weights"]))
    vectors = mean_direction(_features(inputs.features, expected["weights"]))
    chosen = tagcos_selector.tagcos(vectors, ids, inputs.budget, inputs.clusters, document["seed"])
    yield _compared("tagcos", document, "jaccard", jaccard(chosen.tolist(), expected["chosen"]))


def ifd() -> Iterator[Comparison]:
    """Compare both formulas with a tokenizer that adds BOS and one that does not."""
    document = stored("ifd")
    for bos, name in ((False, "no_bos"), (True, "bos")):
        expected = document["expected"][name]
        for formula, template, length in (("ppl_ratio", "plain", 1024), ("loss_ratio", "alpaca", 512)):
            texts = [*TEXTS, LONG_TEXT] if formula == "ppl_ratio" else TEXTS
            origin = document if formula == "ppl_ratio" else document | document["cherry"]
            section = METHODS["ifd"].section.model_validate(
                {"name": "m", "target": "t", "method": "ifd", "formula": formula, "parity": "as_coded"}
            )
            samples = [
                Sample(f"{number:032x}", [{"role": "user", "content": prompt}], response)
                for number, (prompt, response) in enumerate(texts)
            ]
            with _model(bos) as checkpoint:
                encoder = Encoder(checkpoint.tokenizer, cast(Template, template), length)
                request = request_for(Target(name="t", model="m"), METHODS["ifd"].signals(section))
                results = ForwardPass(checkpoint, encoder).measure(samples, request)
            signals = {signal: SIGNALS[signal].frame(results) for signal in METHODS["ifd"].signals(section)}
            rows = METHODS["ifd"].score(ScoreInputs(pl.DataFrame(), signals), section).values.sort("sample_id")
            ours, theirs = rows["value"].to_list(), expected[formula]
            same = [value is None for value in ours] == [value is None for value in theirs]
            pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one is not None]
            found = difference([one for one, _ in pairs], [other for _, other in pairs]) if same else float("inf")
            yield _compared(f"ifd: {formula}, {name}", origin, "difference", found)


def uncertainty() -> Iterator[Comparison]:
    """Compare the three scores, over all positions."""
    document = stored("uncertainty")
    with _model() as checkpoint:
        results = _measured(checkpoint, token_ids(20, 22), Request(sequence_uncertainty=True))
    rows = SIGNALS["sequence_uncertainty"].frame(results)
    for name, expected in document["expected"].items():
        section = METHODS[name].section.model_validate(
            {"name": "m", "target": "t", "method": name, "parity": "as_coded"}
        )
        given = ScoreInputs(pl.DataFrame(), {"sequence_uncertainty": rows})
        scores = METHODS[name].score(given, section).values.sort("sample_id")["value"]
        yield _compared(f"uncertainty: {name}", document, "difference", difference(scores.to_list(), expected))


def less() -> Iterator[Comparison]:
    """Compare the scores of a pool against three subtasks."""
    document, inputs = stored("less"), less_inputs()
    weights = (np.array(inputs.weights) / sum(inputs.weights)).tolist()
    ids = sample_ids(len(inputs.features))
    names = ["first", "second", "third"]
    validation = {name: weighed(_features(own, weights)) for name, own in zip(names, inputs.validation, strict=True)}
    rows = _features(inputs.features, weights).with_columns(ids)
    section = METHODS["less"].section.model_validate(
        {"name": "m", "target": "t", "method": "less", "validation": names}
    )
    given = ScoreInputs(pl.DataFrame(), {"adam_feature_trajectories": rows}, validation=validation)
    scores = METHODS["less"].score(given, section).values.sort("sample_id")["value"]
    expected = document["expected"]["scores"]
    yield _compared("less", document, "difference", difference(scores.to_list(), expected))
    best = [np.argsort(-np.array(values))[:40].tolist() for values in (scores.to_list(), expected)]
    yield _compared("less: 40 of 400", document, "jaccard", jaccard(*best))


def rds_plus() -> Iterator[Comparison]:
    """Compare the largest cosines, and the round robin over six validation samples."""
    document, expected = stored("rds_plus"), stored("rds_plus")["expected"]
    request = Request(embeddings=frozenset({"position_weighted"}))
    with _model() as checkpoint:
        pool, validation = (
            np.stack([result.embeddings["position_weighted"] for result in _measured(checkpoint, ids, request)])
            for ids in (token_ids(150, 24), token_ids(6, 25))
        )
    largest = np.max(list(cosine_rows(validation, pool)), axis=0)
    yield _compared("rds_plus: cosine", document, "difference", difference(largest, expected["largest_cosine"]))
    order = round_robin(pool, validation, len(expected["chosen"]), np.arange(len(pool)), lose_turns=True)
    yield _compared("rds_plus", document, "jaccard", jaccard(order.tolist(), expected["chosen"]))


def k_center() -> Iterator[Comparison]:
    """Compare 150 of 1,500 samples."""
    document = stored("k_center")
    expected, vectors = document["expected"]["chosen"], embeddings(1500, 23)
    order = k_center_selector(vectors, len(expected), document["first"], np.arange(len(vectors)))
    yield _compared("k_center", document, "jaccard", jaccard(order.tolist(), expected))


@contextmanager
def _model(bos: bool = False) -> Iterator[Checkpoint]:
    """Load the tiny model of `inputs.write_model`."""
    with TemporaryDirectory() as folder:
        yield load_checkpoint(write_model(Path(folder), bos), device="cpu")


def _measured(checkpoint: Checkpoint, sequences: Sequence[list[int]], request: Request) -> list[SampleSignals]:
    """Measure sequences of tokens whose first token is the prompt."""
    window = [
        Encoded(Sample(f"{number:032x}", [], ""), ids, 1, len(ids) - 1, [-1] * len(ids))
        for number, ids in enumerate(sequences)
    ]
    scoring = ForwardPass(checkpoint, Encoder(checkpoint.tokenizer, "plain", 2048))
    results = [result for batch in scoring.measure_encoded(window, request) for result in batch]
    return sorted(results, key=lambda result: result.position)


def _features(features: NDArray[np.int8], weights: list[float]) -> pl.DataFrame:
    """Return rows of gradient features along a run [n, T, k]."""
    values = pl.Series("features", features.tolist(), dtype=pl.List(pl.List(pl.Int8)))
    return pl.DataFrame({"features": values, "weights": [weights] * len(features)})


COMPARISONS: tuple[Callable[[], Iterator[Comparison]], ...] = (
    temp,
    s2l,
    tagcos,
    ifd,
    uncertainty,
    less,
    rds_plus,
    k_center,
)
"""Functions that yield the comparisons of one method each."""


def compare_all() -> Iterator[Comparison]:
    """Yield every comparison."""
    for compare in COMPARISONS:
        yield from compare()
