"""Check which selectors work with which methods and budgets, and explain why others do not."""

from __future__ import annotations

from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selector import S2L, AnySelector, KCenter, RoundRobin, Tagcos, Temp


def what_a_selector_lacks(selector: AnySelector | None, score: ScoreSection) -> str | None:
    """Return why a selector cannot be used with a score's method, with the fix; None if it can."""
    method = method_of(score)
    if isinstance(selector, RoundRobin) and not method.validation(score):
        return (
            f"round_robin needs validation samples, which method {method.name} does not have. Choose a score with "
            "method rds, rds_plus, embedding_similarity or less, or another selector."
        )
    if isinstance(selector, S2L) and method.vectors != "loss_trajectories":
        return (
            f"s2l needs loss trajectories, which method {method.name} does not have. Choose a score with method s2l, "
            "or another selector."
        )
    if isinstance(selector, Temp) and method.vectors != "perturbed_losses":
        return (
            f"temp needs losses at perturbed checkpoints, which method {method.name} does not have. Choose a score "
            "with method temp, or another selector."
        )
    if isinstance(selector, Tagcos) and method.vectors != "adam_feature_trajectories":
        return (
            f"tagcos needs gradients along a run, which method {method.name} does not have. Choose a score with "
            "method tagcos or less, or another selector."
        )
    if isinstance(selector, KCenter) and method.vectors is None:
        return (
            f"k_center needs embeddings, which method {method.name} does not have. Choose a score with method "
            "k_center, rds, rds_plus or embedding_similarity, or another selector."
        )
    return None


def what_shares_cannot(by_tokens: bool, by_strata: bool, kind: str) -> tuple[str, str | None]:
    """Return why a selector that apportions the budget itself cannot be used: the key and the message, or None."""
    if by_tokens:
        return "budget", f"selector {kind} apportions a number of samples. Set fraction or samples in the budget."
    if by_strata:
        return "stratify", f"selector {kind} apportions the budget to groups itself. Remove stratify."
    return "", None
