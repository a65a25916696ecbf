"""Versions of each stage's output, which are part of every fingerprint (`curation_assets.workspace.fingerprints`)."""

from __future__ import annotations

from curation_resources.sections import SignalName

# Raise a version when its stage's output changes for the same input; that stage and everything downstream is then
# computed again.
CORPUS_VERSION = 2
SEGMENTATION_VERSION = 1
SIGNAL_VERSIONS: dict[SignalName, int] = {
    "step_gradients": 2,
    "likelihoods": 2,
    "segment_likelihoods": 2,
    "sequence_likelihoods": 1,
    "token_likelihoods": 1,
    "unconditional_likelihoods": 1,
    "embeddings_mean": 2,
    "embeddings_last": 2,
    "embeddings_position_weighted": 2,
    "text_embeddings": 1,
    "loss_trajectories": 1,
    "step_gradient_trajectories": 1,
    "base_likelihoods": 1,
    "perturbed_losses": 1,
    "gradient_spectra": 1,
    "gradient_norms": 1,
    "gradient_features": 1,
    "gradient_feature_trajectories": 1,
    "adam_feature_trajectories": 1,
    "in_run_influence": 1,
    "rewards": 1,
    "instruction_tags": 1,
    "difficulty": 1,
}
SIGMA_VERSION = 1
SCORES_VERSION = 2
QUALITY_VERSION = 1
