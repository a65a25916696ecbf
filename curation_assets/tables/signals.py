"""Tables of signals: one row per sample, stored under the fingerprint of its measurement."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from curation_assets.tables.schema import RESPONSE_TOKENS, RUN_TOKENS, SAMPLE_ID, SIGNAL_FLAGS, Column, Table


def _mean(meaning: str, unit: str = "") -> Column:
    return Column(pl.Float64, f"mean over tokens: {meaning}", unit, nullable=True)


def _signal(name: str, meaning: str, columns: Mapping[str, Column], tokens: Column = RUN_TOKENS) -> Table:
    """Return a table with one row per sample: the common columns of signals around the given ones."""
    common = {"response_tokens": RESPONSE_TOKENS, "tokens": tokens, "flags": SIGNAL_FLAGS}
    return Table(name, meaning, {"sample_id": SAMPLE_ID, **columns, **common}, sort=("sample_id",))


STEPS = {
    "sample_id": SAMPLE_ID,
    "n_steps": Column(pl.Int32, "number of steps K that have tokens"),
    "step_indices": Column(pl.List(pl.Int32), "step_index of each measured step, in order"),
}
WITHOUT_MATRIX = Column(pl.List(pl.String), "why the sample has no matrix, or warnings about it")
SEGMENT_TOKENS = Column(pl.List(pl.Int32), "tokens of steps 1..K, then the answer", "tokens")

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
        "norms": Column(pl.List(pl.Float32), "gradient norms of steps 1..K, then the answer", nullable=True),
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

SEGMENT_LIKELIHOODS = _signal(
    "segment_likelihoods",
    "mean negative log-likelihood of each step and of the answer",
    {
        "step_indices": Column(pl.List(pl.Int32), "step_index of each step that has tokens, in order"),
        "segment_tokens": Column(
            pl.List(pl.Int32), "tokens of these steps, then of the answer if it has any", "tokens"
        ),
        "segment_nll": Column(
            pl.List(pl.Float64),
            "mean -log p over the tokens of these steps, then of the answer if it has any; null if not measured",
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
    "mean NLL of each response at the intermediate checkpoints of the target's training run (S2L)",
    {
        "losses": Column(
            pl.List(pl.Float32),
            "mean NLL of the response at each checkpoint, ordered by training step; null if not measured",
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
                "weight of each checkpoint [T]: mean learning rate of its epoch, divided by the sum of these",
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

SIGNAL_TABLES = {
    table.name: table
    for table in (
        STEP_GRADIENTS,
        LIKELIHOODS,
        SEGMENT_LIKELIHOODS,
        SEQUENCE_LIKELIHOODS,
        TOKEN_LIKELIHOODS,
        UNCONDITIONAL_LIKELIHOODS,
        EMBEDDINGS_MEAN,
        EMBEDDINGS_LAST,
        EMBEDDINGS_POSITION_WEIGHTED,
        TEXT_EMBEDDINGS,
        LOSS_TRAJECTORIES,
        STEP_GRADIENT_TRAJECTORIES,
        BASE_LIKELIHOODS,
        PERTURBED_LOSSES,
        GRADIENT_SPECTRA,
        GRADIENT_NORMS,
        GRADIENT_FEATURES,
        GRADIENT_FEATURE_TRAJECTORIES,
        ADAM_FEATURE_TRAJECTORIES,
        IN_RUN_INFLUENCE,
        REWARDS,
        INSTRUCTION_TAGS,
        DIFFICULTY,
    )
}
