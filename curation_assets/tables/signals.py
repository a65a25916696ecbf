"""The tables of signals: one row a sample, each under the fingerprint of what it was measured with."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from curation_assets.tables.schema import RESPONSE_TOKENS, RUN_TOKENS, SAMPLE_ID, SIGNAL_FLAGS, Column, Table


def _mean(meaning: str, unit: str = "") -> Column:
    return Column(pl.Float64, f"mean over tokens: {meaning}", unit, nullable=True)


def _signal(name: str, meaning: str, columns: Mapping[str, Column], tokens: Column = RUN_TOKENS) -> Table:
    """A table with a row a sample: what every signal's has, around columns of its own."""
    common = {"response_tokens": RESPONSE_TOKENS, "tokens": tokens, "flags": SIGNAL_FLAGS}
    return Table(name, meaning, {"sample_id": SAMPLE_ID, **columns, **common}, sort=("sample_id",))


STEPS = {
    "sample_id": SAMPLE_ID,
    "n_steps": Column(pl.Int32, "steps K that have tokens"),
    "step_indices": Column(pl.List(pl.Int32), "step_index of each measured step, in order"),
}
WITHOUT_MATRIX = Column(pl.List(pl.String), "why a sample has no matrix, or what to know about it")
SEGMENT_TOKENS = Column(pl.List(pl.Int32), "tokens of steps 1..K, then the answer", "tokens")

STEP_GRADIENTS = Table(
    "step_gradients",
    "GRACE's signal: Gram matrix of the segments' proxy gradients at a checkpoint (arXiv 2605.13130, Eq. 9 and 11)",
    {
        **STEPS,
        "gram": Column(
            pl.List(pl.Float32),
            "upper triangle by rows of M = G G^T over steps 1..K, then the answer; null if not measured",
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
    "what the model thinks of each response; means over its tokens, null if not measured",
    {
        "sample_id": SAMPLE_ID,
        "tokens": RUN_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "mean_nll": _mean("negative log-likelihood of the response", "nats"),
        "first_nll": Column(pl.Float64, "-log p of the response's first token alone", "nats", nullable=True),
        "first_100_nll": _mean("the same over the first 100 tokens or all if there are fewer, EOS included", "nats"),
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
    "what the model thinks of each whole sequence: means over all its tokens but the first, those of the prompt, "
    "of images and EOS included; null if not measured",
    {
        "sequence_nll": _mean("negative log-likelihood", "nats"),
        "sequence_entropy": _mean("entropy of the predicted distribution", "nats"),
        "largest_logit": _mean("the largest logit"),
        "logit_margin": _mean("the largest minus the second largest logit"),
    },
)

SEGMENT_LIKELIHOODS = _signal(
    "segment_likelihoods",
    "mean negative log-likelihood of each step, and of the answer",
    {
        "step_indices": Column(pl.List(pl.Int32), "step_index of each step that has tokens, in order"),
        "segment_tokens": Column(
            pl.List(pl.Int32), "tokens of these steps, then of the answer if it has any", "tokens"
        ),
        "segment_nll": Column(
            pl.List(pl.Float64),
            "mean -log p of these steps' tokens, then of the answer's if it has any; null if not measured",
            "nats",
            nullable=True,
        ),
    },
)


TOKEN_LIKELIHOODS = _signal(
    "token_likelihoods",
    "log-likelihood of every token of the response, for weights by token",
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
    "how likely the model finds each response without its prompt: IFD's second pass",
    {
        "unconditional_nll": Column(
            pl.Float64,
            "mean -log p of the response's second to last token, given only the response's own tokens",
            "nats",
            nullable=True,
        ),
    },
    tokens=Column(pl.Int32, "tokens run for it: the response", "tokens"),
)


def _embeddings(name: str, how: str) -> Table:
    vector = Column(
        pl.List(pl.Float16),
        "the vector [d] in half precision; null if not measured, or if a component is beyond its range",
        nullable=True,
    )
    return _signal(name, f"each sample as one vector: {how}", {"vector": vector})


EMBEDDINGS_MEAN = _embeddings("embeddings_mean", "the last layer's hidden states, averaged over tokens")
EMBEDDINGS_LAST = _embeddings("embeddings_last", "the last layer's hidden state of the last token")
EMBEDDINGS_POSITION_WEIGHTED = _embeddings(
    "embeddings_position_weighted",
    "the last layer's hidden states, averaged with weights that grow with the position",
)
TEXT_EMBEDDINGS = _embeddings("text_embeddings", "by an embedding model, of prompt and response")

LOSS_TRAJECTORIES = _signal(
    "loss_trajectories",
    "mean NLL of each response at the checkpoints that the target's training run left on its way (S2L)",
    {
        "losses": Column(
            pl.List(pl.Float32),
            "mean NLL of the response at each checkpoint, in the order of their steps; null if not measured",
            "nats",
            nullable=True,
        )
    },
)

STEP_GRADIENT_TRAJECTORIES = Table(
    "step_gradient_trajectories",
    "step_gradients at each of the checkpoints that the target's training run left on its way (GRACE over several)",
    {
        **STEPS,
        "grams": Column(
            pl.List(pl.List(pl.Float32)),
            "as gram of step_gradients at each checkpoint, in the order of their steps; null if not measured",
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
    "mean NLL of each response at the target's model as it was before its training run (learnability)",
    {"base_nll": _mean("negative log-likelihood of the response at the base model", "nats")},
)


def _path(window: str) -> Column:
    meaning = f"mean NLL of the response's first {window} tokens at each directional checkpoint, in order of radius"
    return Column(pl.List(pl.Float32), f"{meaning}; empty without a path, null if not measured", "nats", nullable=True)


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
    "singular values of each response's gradient, summed up by layer and projection q, k, v, o (arXiv 2504.10766)",
    {
        "loss": Column(pl.Float64, "mean NLL of the response, whose gradient it is", "nats", nullable=True),
        "nuclear_norm": _by_layer(pl.Float32, "N [L][4], the sum of the singular values"),
        "effective_rank": _by_layer(pl.Float32, "R [L][4], exp of their entropy; null of a gradient that is zero"),
        "rows": _by_layer(pl.Int32, "T [L][4], positions that a gradient reaches"),
        "largest_rank": _by_layer(pl.Int32, "min(T, d_out, d_in) [L][4], which R cannot exceed"),
        "same_layer": _by_layer(pl.Float32, "cosines of q with o and of k with v [L][2]; null where shapes differ"),
        "adjacent": _by_layer(pl.Float32, "cosine of each projection with that of the layer above [L-1][4]"),
    },
)

GRADIENT_NORMS = _signal(
    "gradient_norms",
    "norm of each response's gradient with respect to what the target trains, or its linear layers (GraNd)",
    {
        "loss": Column(pl.Float64, "mean NLL of the response, whose gradient it is", "nats", nullable=True),
        "gradient_norm": Column(pl.Float64, "L2 norm of the whole gradient; null if not measured", nullable=True),
    },
)

GRADIENT_FEATURES = _signal(
    "gradient_features",
    "each response's gradient, randomly projected: dot products are those of gradients on average",
    {
        "features": Column(pl.List(pl.Int8), "the vector [k], in units of scale; null if not measured", nullable=True),
        "scale": Column(
            pl.Float32, "what one of these numbers stands for; 0 of a gradient that is zero", nullable=True
        ),
    },
)


def _features_along_a_run(name: str, of: str) -> Table:
    meaning = f"{of}, randomly projected, at each of the checkpoints that the target's training run left on its way"
    return _signal(
        name,
        meaning,
        {
            "features": Column(
                pl.List(pl.List(pl.Int8)),
                "the vectors [T][k], in units of their scales; null if not measured",
                nullable=True,
            ),
            "scales": Column(pl.List(pl.Float32), "what one number of each vector stands for [T]", nullable=True),
            "weights": Column(
                pl.List(pl.Float32),
                "of each checkpoint [T]: mean learning rate of the epoch that it lies in, over their sum",
                nullable=True,
            ),
        },
    )


GRADIENT_FEATURE_TRAJECTORIES = _features_along_a_run("gradient_feature_trajectories", "each response's gradient")
ADAM_FEATURE_TRAJECTORIES = _features_along_a_run(
    "adam_feature_trajectories", "the direction in which Adam would go by each response's gradient (LESS)"
)

IN_RUN_INFLUENCE = _signal(
    "in_run_influence",
    "how much each sample's steps in the target's run lowered the loss of validation samples, to first order",
    {
        "influence": Column(
            pl.List(pl.Float64),
            "sum over steps of lr <g_val, g_i> for each of warmup.influence; null if it was not trained on",
            nullable=True,
        )
    },
)

REWARDS = _signal(
    "rewards",
    "what a reward model says of each response",
    {"reward": Column(pl.Float64, "raw logit; null if not measured", nullable=True)},
)

JUDGE_TOKENS = Column(pl.Int32, "of question and reply; 0 if the same was asked before", "tokens")
REPLY = Column(pl.String, "all that the judge replied; null if it was not asked", nullable=True)

INSTRUCTION_TAGS = _signal(
    "instruction_tags",
    "intentions that a judge finds in each prompt (InsTag)",
    {
        "tags": Column(pl.Int32, "how many; null if the reply names none and is no empty list", nullable=True),
        "names": Column(pl.List(pl.String), "of the tags, as far as they can be read", nullable=True),
        "reply": REPLY,
    },
    tokens=JUDGE_TOKENS,
)

DIFFICULTY = _signal(
    "difficulty",
    "how difficult a judge finds each prompt",
    {
        "difficulty": Column(
            pl.Int32, "from 1 to 10; null if the reply does not begin with such a number", nullable=True
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
