"""Signals: one declaration each, with its table, version, checkpoint, request and rows.

Everything else derives from the declarations: the names in curation.yaml and its schema, versions, fingerprints, assets
and the documentation of tables. A new signal is a declaration here, the pass that computes it (`scoring.samples`,
`scoring.measuring`), and a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from curation_assets.tables import signal_rows as rows
from curation_assets.tables.schema import RESPONSE_TOKENS, RUN_TOKENS, SAMPLE_ID, SIGNAL_FLAGS, Column, Table
from curation_resources.scoring.samples import AnswerPrefix, Pooling, SampleSignals

Kind = Literal["language", "embedding", "reward", "process_reward", "judge"]
"""The kind of model behind a target: causal language model, embedding model, reward model, process reward model or LLM
judge."""

Checkpoint = Literal["target", "base", "trajectory", "run", "perturbed"]
"""Where a signal is measured: at the target's own checkpoint, at its base model, at the intermediate checkpoints of its
training run, during that run, or at perturbed checkpoints."""


@dataclass(frozen=True)
class Signal:
    """The declaration of a signal.

    Attributes:
        table: where it is stored; the table's name is the signal's.
        value: the column that is null where the signal was not measured.
        rows: returns the table's rows from the results of a pass.
        request: returns the fields of `Request` that ask a pass for it, from a target's settings. Sets and tuples of
            several signals are united.
        version: raised when its values change for the same input; part of its fingerprint.
        checkpoint: where it is measured.
        kind: the only kind of target that has it.
        segmented: True if it depends on the segmentation, or on where the answer begins.
        proxied: True if it depends on the proxy gradient.
        projected: True if it stores gradients as projected vectors.
    """

    table: Table
    value: str
    rows: Callable[[Sequence[SampleSignals]], rows.Rows]
    request: Callable[[Any], Mapping[str, object]]
    version: int = 1
    checkpoint: Checkpoint = "target"
    kind: Kind = "language"
    segmented: bool = False
    proxied: bool = False
    projected: bool = False

    @property
    def name(self) -> str:
        """The name in curation.yaml."""
        return self.table.name

    def frame(self, results: Sequence[SampleSignals]) -> pl.DataFrame:
        """Return the rows of these samples as a table."""
        made = pl.DataFrame(self.rows(results), schema=self.table.schema, strict=False)
        return self.table.conform(made)

    def reasons(self, stored: pl.DataFrame) -> dict[str, int]:
        """Return the number of stored samples without a value, by flags; `template_refused` with what it said."""
        without = stored.filter(pl.col(self.value).is_null()).select(pl.col("flags").list.join("\n"))
        counts: Counter[str] = Counter()
        for joined, count in without.group_by("flags").len().iter_rows():
            flags = joined.split("\n")
            said = [flag for flag in flags if not any(other.startswith(f"{flag}: ") for other in flags)]
            counts["+".join(said)] += count
        return dict(sorted(counts.items()))


def _mean(meaning: str, unit: str = "") -> Column:
    return Column(pl.Float64, f"mean over tokens: {meaning}", unit, nullable=True)


def _signal(name: str, meaning: str, columns: Mapping[str, Column], tokens: Column = RUN_TOKENS) -> Table:
    """Return a table with one row per sample: the common columns of signals around the given ones."""
    common = {"response_tokens": RESPONSE_TOKENS, "tokens": tokens, "flags": SIGNAL_FLAGS}
    return Table(name, meaning, {"sample_id": SAMPLE_ID, **columns, **common}, sort=("sample_id",))


STEPS = {
    "sample_id": SAMPLE_ID,
    "n_steps": Column(pl.Int32, "number of steps K that have tokens"),
    "step_indices": Column(
        pl.List(pl.Int32),
        "step_index of each measured step, in order [K]; the answer, last in the other lists, has none",
    ),
}
WITHOUT_MATRIX = Column(pl.List(pl.String), "why the sample has no matrix, or warnings about it")
SEGMENT_TOKENS = Column(
    pl.List(pl.Int32), "tokens of steps 1..K, then of the answer [K + 1], or [K] if it has none", "tokens"
)

STEP_GRADIENTS = Table(
    "step_gradients",
    "GRACE's signal: Gram matrix of the segments' proxy gradients at a checkpoint (arXiv 2605.13130, Eq. 9 and 11)",
    {
        **STEPS,
        "gram": Column(
            pl.List(pl.Float32),
            "upper triangle, row by row, of M = G G^T over steps 1..K, then the answer; null if not measured",
            nullable=True,
        ),
        "norms": Column(pl.List(pl.Float32), "gradient norms of steps 1..K, then the answer [K + 1]", nullable=True),
        "segment_tokens": SEGMENT_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "tokens": RUN_TOKENS,
        "flags": WITHOUT_MATRIX,
    },
    sort=("sample_id",),
)

LIKELIHOODS = Table(
    "likelihoods",
    "likelihood and uncertainty of each response; means over its tokens, null if not measured",
    {
        "sample_id": SAMPLE_ID,
        "tokens": RUN_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "mean_nll": _mean("negative log-likelihood of the response", "nats"),
        "first_nll": Column(pl.Float64, "-log p of the response's first token alone", "nats", nullable=True),
        "first_100_nll": _mean("the same over the first 100 tokens, or all if there are fewer, including EOS", "nats"),
        "first_1000_nll": _mean("the same over the first 1,000 tokens", "nats"),
        "mean_entropy": _mean("entropy of the predicted distribution", "nats"),
        "least_confidence": _mean("1 - the largest predicted probability"),
        "mean_margin": _mean("the largest minus the second largest predicted probability"),
        "flags": SIGNAL_FLAGS,
    },
    sort=("sample_id",),
)

SEQUENCE_LIKELIHOODS = _signal(
    "sequence_likelihoods",
    "likelihood and uncertainty of each whole sequence: means over all tokens but the first, including prompt, "
    "images and EOS; null if not measured",
    {
        "sequence_nll": _mean("negative log-likelihood", "nats"),
        "sequence_entropy": _mean("entropy of the predicted distribution", "nats"),
        "largest_logit": _mean("the largest logit"),
        "logit_margin": _mean("the largest minus the second largest logit"),
    },
)

SEQUENCE_UNCERTAINTY = _signal(
    "sequence_uncertainty",
    "uncertainty of the predictions after every token of a sequence, the last one included, as in the released code",
    {
        "entropy": _mean("entropy of the distribution predicted after it", "nats"),
        "largest_logit": _mean("the largest logit after it"),
        "logit_margin": _mean("the largest minus the second largest logit after it"),
    },
)

SEGMENT_LIKELIHOODS = _signal(
    "segment_likelihoods",
    "mean negative log-likelihood of each step and of the answer",
    {
        "step_indices": Column(
            pl.List(pl.Int32),
            "step_index of each step that has tokens, in order [K]; the answer, last in the other lists, has none",
        ),
        "segment_tokens": Column(
            pl.List(pl.Int32), "tokens of these steps, then of the answer [K + 1], or [K] if it has none", "tokens"
        ),
        "segment_nll": Column(
            pl.List(pl.Float64),
            "mean -log p over the tokens of each entry of segment_tokens, so of the same length; null if not measured",
            "nats",
            nullable=True,
        ),
    },
)


TOKEN_LIKELIHOODS = _signal(
    "token_likelihoods",
    "log-likelihood of every response token, for token weights",
    {
        "log_likelihoods": Column(
            pl.List(pl.Float16),
            "log p of the response's tokens in order, in half precision; null if not measured",
            "nats",
            nullable=True,
        ),
    },
)

UNCONDITIONAL_LIKELIHOODS = _signal(
    "unconditional_likelihoods",
    "likelihood of each response without its prompt: IFD's second pass",
    {
        "unconditional_nll": Column(
            pl.Float64,
            "mean -log p of the response's tokens from the second on, given only the response's own tokens",
            "nats",
            nullable=True,
        ),
    },
    tokens=Column(pl.Int32, "tokens processed for this signal: the response", "tokens"),
)


def _direct_answers(name: str, how: str) -> Table:
    """Return the table of a likelihood of each response as a text of its own."""
    tokens = Column(pl.Int32, "tokens processed for this signal: the response and what precedes it", "tokens")
    columns = {
        "direct_nll": _mean("negative log-likelihood of the response; its first token counts if anything precedes it"),
        "after_special": Column(
            pl.Boolean, "whether the tokenizer put a special token (BOS) first; null if not measured", nullable=True
        ),
    }
    return _signal(name, f"likelihood of each response as a text of its own, tokenized anew{how}", columns, tokens)


DIRECT_ANSWER_LIKELIHOODS = _direct_answers("direct_answer_likelihoods", ": IFD as in Superfiltering's released code")
HEADED_ANSWER_LIKELIHOODS = _direct_answers(
    "headed_answer_likelihoods", " after `### Response:`: IFD as in Cherry LLM's released code"
)

ERROR_NORMS = _signal(
    "error_norms",
    "distance of each response's predictions from its tokens (EL2N)",
    {"error_norm": _mean("norm of p - y, where y is 1 at the token and 0 elsewhere")},
)


ATTENTION_INFLUENCE = _signal(
    "attention_influence",
    "loss of each response with and without the model's retrieval heads (AttentionInfluence, arXiv 2505.07293)",
    {
        "base_nll": _mean("negative log-likelihood of the response", "nats"),
        "masked_nll": _mean("the same with uniform attention in the retrieval heads; null if base_nll is 0", "nats"),
        "step_indices": STEPS["step_indices"],
        "segment_tokens": SEGMENT_TOKENS,
        "segment_base": Column(
            pl.List(pl.Float64), "sum of -log p over each entry of segment_tokens", "nats", nullable=True
        ),
        "segment_masked": Column(
            pl.List(pl.Float64), "the same with uniform attention in the retrieval heads", "nats", nullable=True
        ),
        "heads": Column(pl.String, "these heads as LAYER.HEAD, counted from 0, strongest first", nullable=True),
    },
    tokens=Column(pl.Int32, "tokens processed for this signal, in both passes", "tokens"),
)


def _embeddings(name: str, how: str) -> Table:
    vector = Column(
        pl.List(pl.Float16),
        "vector [d] in half precision; null if not measured, or if a component exceeds the range",
        nullable=True,
    )
    return _signal(name, f"each sample as one vector: {how}", {"vector": vector})


EMBEDDINGS_MEAN = _embeddings("embeddings_mean", "the last layer's hidden states, averaged over tokens")
EMBEDDINGS_LAST = _embeddings("embeddings_last", "the last layer's hidden state at the last token")
EMBEDDINGS_POSITION_WEIGHTED = _embeddings(
    "embeddings_position_weighted",
    "the last layer's hidden states, averaged with weights that increase with the position",
)
TEXT_EMBEDDINGS = _embeddings("text_embeddings", "prompt and response, encoded by an embedding model")

LOSS_TRAJECTORIES = _signal(
    "loss_trajectories",
    "mean NLL of each response and EOS at the intermediate checkpoints of the target's training run (S2L)",
    {
        "losses": Column(
            pl.List(pl.Float32),
            "mean NLL of the response and EOS at each checkpoint, ordered by training step; null if not measured",
            "nats",
            nullable=True,
        )
    },
)

STEP_GRADIENT_TRAJECTORIES = Table(
    "step_gradient_trajectories",
    "step_gradients at each intermediate checkpoint of the target's training run (GRACE over several checkpoints)",
    {
        **STEPS,
        "grams": Column(
            pl.List(pl.List(pl.Float32)),
            "gram, as in step_gradients, at each checkpoint, ordered by training step; null if not measured",
            nullable=True,
        ),
        "segment_tokens": SEGMENT_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "tokens": RUN_TOKENS,
        "flags": WITHOUT_MATRIX,
    },
    sort=("sample_id",),
)

BASE_LIKELIHOODS = _signal(
    "base_likelihoods",
    "mean NLL of each response at the target's model before its training run (learnability)",
    {"base_nll": _mean("negative log-likelihood of the response at the base model", "nats")},
)


def _path(window: str) -> Column:
    meaning = f"mean NLL of the response's first {window} tokens at each directional checkpoint, in order of radius"
    return Column(
        pl.List(pl.Float32), f"{meaning}; empty without a directional path, null if not measured", "nats", nullable=True
    )


PERTURBED_LOSSES = _signal(
    "perturbed_losses",
    "early losses of each response at the base model and at perturbed checkpoints (TEMP, arXiv 2606.26797)",
    {
        "base_100": _mean("negative log-likelihood of the first 100 tokens at the base model", "nats"),
        "random_100": _mean("the same at the randomly perturbed checkpoint", "nats"),
        "directional_100": _path("100"),
        "directional_1000": _path("1,000"),
    },
)


def _by_layer(inner: type[pl.DataType] | pl.DataType, meaning: str) -> Column:
    return Column(pl.List(pl.List(inner)), f"{meaning}; null if not measured", nullable=True)


GRADIENT_SPECTRA = _signal(
    "gradient_spectra",
    "singular values of each response's gradient, summarized by layer and projection q, k, v, o (arXiv 2504.10766)",
    {
        "loss": Column(pl.Float64, "mean NLL of the response, from which the gradient is taken", "nats", nullable=True),
        "nuclear_norm": _by_layer(pl.Float32, "N [L][4], the sum of the singular values"),
        "effective_rank": _by_layer(pl.Float32, "R [L][4], exp of their entropy; null for a zero gradient"),
        "rows": _by_layer(pl.Int32, "T [L][4], positions with a gradient"),
        "largest_rank": _by_layer(pl.Int32, "min(T, d_out, d_in) [L][4], the upper bound of R"),
        "same_layer": _by_layer(pl.Float32, "cosines of q with o and of k with v [L][2]; null if their shapes differ"),
        "adjacent": _by_layer(pl.Float32, "cosine of each projection with the one in the layer above [L-1][4]"),
    },
)

GRADIENT_NORMS = _signal(
    "gradient_norms",
    "norm of each response's gradient with respect to the weights that the target trains, or its linear layers (GraNd)",
    {
        "loss": Column(pl.Float64, "mean NLL of the response, from which the gradient is taken", "nats", nullable=True),
        "gradient_norm": Column(pl.Float64, "L2 norm of the whole gradient; null if not measured", nullable=True),
    },
)

GRADIENT_FEATURES = _signal(
    "gradient_features",
    "randomly projected gradient of each response: dot products equal those of the gradients in expectation",
    {
        "features": Column(pl.List(pl.Int8), "vector [k], in units of scale; null if not measured", nullable=True),
        "scale": Column(pl.Float32, "value of one unit; 0 for a zero gradient", nullable=True),
    },
)


def _features_along_a_run(name: str, of: str) -> Table:
    meaning = f"{of}, randomly projected, at each intermediate checkpoint of the target's training run"
    return _signal(
        name,
        meaning,
        {
            "features": Column(
                pl.List(pl.List(pl.Int8)),
                "vectors [T][k], in units of their scales; null if not measured",
                nullable=True,
            ),
            "scales": Column(pl.List(pl.Float32), "value of one unit of each vector [T]", nullable=True),
            "weights": Column(
                pl.List(pl.Float32),
                "weight of each checkpoint [T]: mean learning rate since the previous one, divided by the sum of these",
                nullable=True,
            ),
        },
    )


GRADIENT_FEATURE_TRAJECTORIES = _features_along_a_run("gradient_feature_trajectories", "each response's gradient")
ADAM_FEATURE_TRAJECTORIES = _features_along_a_run(
    "adam_feature_trajectories", "the direction of Adam's update for each response's gradient (LESS)"
)

IN_RUN_INFLUENCE = _signal(
    "in_run_influence",
    "first-order estimate of how much each sample's steps in the target's run lowered the loss of validation samples",
    {
        "influence": Column(
            pl.List(pl.Float64),
            "sum over steps of lr <g_val, g_i> for each of warmup.influence; null if the sample was not trained on",
            nullable=True,
        )
    },
)

REWARDS = _signal(
    "rewards",
    "reward model's score of each response",
    {"reward": Column(pl.Float64, "raw logit; null if not measured", nullable=True)},
)

PROCESS_REWARDS = _signal(
    "process_rewards",
    "process reward model's probabilities that steps are right",
    {
        "step_indices": Column(pl.List(pl.Int32), "step_index of each step, in order [K]; the answer has none"),
        "segment_tokens": Column(
            pl.List(pl.Int32),
            "tokens of these steps, then of what follows them [K + 1], or [K] without answer",
            "tokens",
        ),
        "rewards": Column(
            pl.List(pl.Float64),
            "probability that each entry of segment_tokens is right, from 0 to 1; null if not measured",
            nullable=True,
        ),
    },
)

JUDGE_TOKENS = Column(pl.Int32, "tokens of question and reply; 0 if the same question was asked before", "tokens")
REPLY = Column(pl.String, "the judge's full reply; null if it was not queried", nullable=True)

INSTRUCTION_TAGS = _signal(
    "instruction_tags",
    "intentions that a judge identifies in each prompt (InsTag)",
    {
        "tags": Column(
            pl.Int32, "number of tags; null if the reply names none and is not an empty list", nullable=True
        ),
        "names": Column(pl.List(pl.String), "names of the tags, as far as they can be parsed", nullable=True),
        "reply": REPLY,
    },
    tokens=JUDGE_TOKENS,
)

DIFFICULTY = _signal(
    "difficulty",
    "difficulty of each prompt according to a judge",
    {
        "difficulty": Column(
            pl.Int32, "from 1 to 10; null if the reply does not start with such a number", nullable=True
        ),
        "reply": REPLY,
    },
    tokens=JUDGE_TOKENS,
)


def _rating(name: str, meaning: str) -> Table:
    """Return the table of a judge's ratings from 1 to 6, in the column of its name."""
    rating = Column(pl.Int32, "from 1 to 6; null if the reply does not start with such a number", nullable=True)
    return _signal(name, meaning, {name: rating, "reply": REPLY}, tokens=JUDGE_TOKENS)


COMPLEXITY = _rating("complexity", "complexity of each prompt according to a judge")
SOLVE_RATE = _signal(
    "solve_rate",
    "a model's own answers to each prompt, compared with the row's answer",
    {
        "solve_rate": Column(pl.Float64, "share of right answers, from 0 to 1; null if it is not known", nullable=True),
        "answers": Column(pl.Int32, "answers that the model gave", nullable=True),
        "answered": Column(pl.Int32, "answers of these that state one, by the markers of segmentation", nullable=True),
        "right": Column(pl.Int32, "answers of these that equal the row's", nullable=True),
        "stated": Column(
            pl.List(pl.String), "what each answer states [answers]; null for one that states nothing", nullable=True
        ),
        "refusal": Column(pl.String, "the endpoint's message if it refused the prompt", nullable=True),
    },
    tokens=Column(
        pl.Int32, "tokens of prompt and answers; 0 if the same prompt was asked before, or not asked", "tokens"
    ),
)
QUALITY = _rating("quality", "quality of each response to its prompt according to a judge")


def _flag(field: str) -> Callable[[Any], Mapping[str, object]]:
    """Return a request that sets one field to True."""
    return lambda _target: {field: True}


def _direct(prefix: AnswerPrefix) -> Callable[[Any], Mapping[str, object]]:
    """Return a request for the likelihood of responses as texts of their own."""
    return lambda _target: {"direct": frozenset({prefix})}


def _proxy(field: str) -> Callable[[Any], Mapping[str, object]]:
    """Return a request for Gram matrices under the target's proxy."""
    return lambda target: {
        field: target.proxy,
        "step_features": target.gradients.spec() if target.proxy == "projected" else None,
    }


def _vectors(field: str) -> Callable[[Any], Mapping[str, object]]:
    """Return a request for projected gradients."""
    return lambda target: {field: target.gradients.spec()}


def _embedding(table: Table, pooling: Pooling, version: int, kind: Kind = "language") -> Signal:
    request: Mapping[str, object] = {"embeddings": frozenset({pooling})}
    return Signal(
        table, "vector", partial(rows.embeddings, pooling), lambda _target: request, version=version, kind=kind
    )


_DECLARED = (
    Signal(
        STEP_GRADIENTS,
        "gram",
        rows.step_gradients,
        _proxy("step_gradients"),
        version=2,
        segmented=True,
        proxied=True,
    ),
    Signal(LIKELIHOODS, "mean_nll", rows.means(lambda result: result.likelihoods), _flag("likelihoods"), version=2),
    Signal(
        SEGMENT_LIKELIHOODS,
        "segment_nll",
        rows.segment_likelihoods,
        _flag("segment_likelihoods"),
        version=2,
        segmented=True,
    ),
    Signal(
        SEQUENCE_LIKELIHOODS,
        "sequence_nll",
        rows.means(lambda result: result.sequence_likelihoods),
        _flag("sequence_likelihoods"),
    ),
    Signal(
        SEQUENCE_UNCERTAINTY,
        "entropy",
        rows.means(lambda result: result.sequence_uncertainty),
        _flag("sequence_uncertainty"),
    ),
    Signal(TOKEN_LIKELIHOODS, "log_likelihoods", rows.token_likelihoods, _flag("token_likelihoods")),
    Signal(UNCONDITIONAL_LIKELIHOODS, "unconditional_nll", rows.unconditional_likelihoods, _flag("unconditional")),
    Signal(DIRECT_ANSWER_LIKELIHOODS, "direct_nll", partial(rows.direct_answers, ""), _direct("")),
    Signal(
        HEADED_ANSWER_LIKELIHOODS,
        "direct_nll",
        partial(rows.direct_answers, "### Response:"),
        _direct("### Response:"),
    ),
    Signal(
        ERROR_NORMS,
        "error_norm",
        partial(rows.elsewhere, "error_norm", lambda result: result.error_norm),
        _flag("error_norms"),
    ),
    Signal(
        ATTENTION_INFLUENCE,
        "masked_nll",
        rows.attention_influence,
        lambda target: {"attention_influence": target.attention_influence.spec()},
        segmented=True,
    ),
    _embedding(EMBEDDINGS_MEAN, "mean", version=2),
    _embedding(EMBEDDINGS_LAST, "last", version=2),
    _embedding(EMBEDDINGS_POSITION_WEIGHTED, "position_weighted", version=2),
    _embedding(TEXT_EMBEDDINGS, "text", version=1, kind="embedding"),
    Signal(
        LOSS_TRAJECTORIES,
        "losses",
        partial(rows.elsewhere, "losses", lambda result: result.trajectory),
        _flag("trajectory"),
        version=2,
        checkpoint="trajectory",
    ),
    Signal(
        STEP_GRADIENT_TRAJECTORIES,
        "grams",
        rows.step_gradient_trajectories,
        _proxy("trajectory_gradients"),
        checkpoint="trajectory",
        segmented=True,
        proxied=True,
    ),
    Signal(
        BASE_LIKELIHOODS,
        "base_nll",
        partial(rows.elsewhere, "base_nll", lambda result: result.base_nll),
        _flag("base_likelihoods"),
        checkpoint="base",
    ),
    Signal(
        PERTURBED_LOSSES,
        "random_100",
        rows.perturbed_losses,
        _flag("perturbed"),
        checkpoint="perturbed",
        segmented=True,
    ),
    Signal(GRADIENT_SPECTRA, "nuclear_norm", rows.of_gradients(rows.spectra), _flag("spectra")),
    Signal(
        GRADIENT_NORMS,
        "gradient_norm",
        rows.of_gradients(rows.norms),
        lambda target: {"gradient_norms": target.gradients.weights},
    ),
    Signal(GRADIENT_FEATURES, "features", rows.of_gradients(rows.features), _vectors("features"), projected=True),
    Signal(
        GRADIENT_FEATURE_TRAJECTORIES,
        "features",
        rows.of_gradients(partial(rows.along, lambda result: result.trajectory_features)),
        _vectors("trajectory_features"),
        version=2,
        checkpoint="trajectory",
        projected=True,
    ),
    Signal(
        ADAM_FEATURE_TRAJECTORIES,
        "features",
        rows.of_gradients(partial(rows.along, lambda result: result.trajectory_adam_features)),
        _vectors("trajectory_adam_features"),
        version=2,
        checkpoint="trajectory",
        projected=True,
    ),
    Signal(IN_RUN_INFLUENCE, "influence", rows.in_run_influence, _flag("in_run"), checkpoint="run"),
    Signal(REWARDS, "reward", rows.rewards, _flag("rewards"), kind="reward"),
    Signal(
        PROCESS_REWARDS,
        "rewards",
        rows.process_rewards,
        _flag("process_rewards"),
        kind="process_reward",
        segmented=True,
    ),
    Signal(
        INSTRUCTION_TAGS,
        "tags",
        partial(rows.judgements, "instruction_tags", "tags"),
        lambda _target: {"questions": ("instruction_tags",)},
        kind="judge",
    ),
    Signal(
        DIFFICULTY,
        "difficulty",
        partial(rows.judgements, "difficulty", "difficulty"),
        lambda _target: {"questions": ("difficulty",)},
        kind="judge",
    ),
    Signal(
        COMPLEXITY,
        "complexity",
        partial(rows.judgements, "complexity", "complexity"),
        lambda _target: {"questions": ("complexity",)},
        kind="judge",
    ),
    Signal(
        QUALITY,
        "quality",
        partial(rows.judgements, "quality", "quality"),
        lambda _target: {"questions": ("quality",)},
        kind="judge",
    ),
    # Raise its version if `steps.correctness.same_answer` changes.
    Signal(SOLVE_RATE, "solve_rate", rows.solve_rates, _flag("solving"), kind="judge"),
)

SIGNALS: dict[SignalName, Signal] = {signal.name: signal for signal in _DECLARED}

if TYPE_CHECKING:
    SignalName = str
else:
    SignalName = Literal[tuple(SIGNALS)]


def _names(holds: Callable[[Signal], bool]) -> tuple[SignalName, ...]:
    return tuple(name for name, signal in SIGNALS.items() if holds(signal))


ALONG_A_RUN = _names(lambda signal: signal.checkpoint == "trajectory")
"""Signals that are measured at the intermediate checkpoints of a training run."""

PROXY_SIGNALS = frozenset(_names(lambda signal: signal.proxied))
"""Signals that depend on the choice of proxy gradient."""

FEATURE_SIGNALS = frozenset(_names(lambda signal: signal.projected))
"""Signals that store gradients as one vector each."""

SEGMENTED_SIGNALS = frozenset(_names(lambda signal: signal.segmented))
"""Signals that depend on segmentation into steps, or on where the answer begins."""

OF_KIND: dict[Kind, tuple[SignalName, ...]] = {
    "embedding": _names(lambda signal: signal.kind == "embedding"),
    "reward": _names(lambda signal: signal.kind == "reward"),
    "process_reward": _names(lambda signal: signal.kind == "process_reward"),
    "judge": _names(lambda signal: signal.kind == "judge"),
}
"""Signals that are specific to one kind of target; all other signals belong to language models."""

SIGNAL_TABLES = {name: signal.table for name, signal in SIGNALS.items()}
