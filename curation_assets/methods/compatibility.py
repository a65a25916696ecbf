"""Which selector suits which method and budget, and what to say where it does not."""

from __future__ import annotations

from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selector import S2L, AnySelector, KCenter, RoundRobin, Tagcos, Temp


def what_a_selector_lacks(selector: AnySelector | None, score: ScoreSection) -> str | None:
    """Why a selector cannot choose by a score's method, and the mend; None if it can."""
    method = method_of(score)
    if isinstance(selector, RoundRobin) and not method.validation(score):
        return (
            f"round_robin goes round validation samples, which method {method.name} does not have; choose a score "
            "with method rds, rds_plus, embedding_similarity or less, or another selector"
        )
    if isinstance(selector, S2L) and method.vectors != "loss_trajectories":
        return (
            f"s2l clusters loss trajectories, which method {method.name} does not have; choose a score with method "
            "s2l, or another selector"
        )
    if isinstance(selector, Temp) and method.vectors != "perturbed_losses":
        return (
            f"temp looks at losses at perturbed checkpoints, which method {method.name} does not have; choose a score "
            "with method temp, or another selector"
        )
    if isinstance(selector, Tagcos) and method.vectors != "adam_feature_trajectories":
        return (
            f"tagcos clusters gradients along a run, which method {method.name} does not have; choose a score with "
            "method tagcos or less, or another selector"
        )
    if isinstance(selector, KCenter) and method.vectors is None:
        return (
            f"k_center looks at embeddings, which method {method.name} does not have; choose a score with method "
            "k_center, rds, rds_plus or embedding_similarity, or another selector"
        )
    return None


def what_shares_cannot(by_tokens: bool, by_strata: bool, kind: str) -> tuple[str, str | None]:
    """What a selector that shares a budget out by itself cannot do: the key, what is wrong, and the mend."""
    if by_tokens:
        return "budget", f"selector {kind} shares out a number of samples; give a fraction or samples"
    if by_strata:
        return "stratify", f"selector {kind} gives every group its share by itself; leave stratify out"
    return "", None
