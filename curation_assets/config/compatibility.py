"""Check which selectors work with which methods and budgets, and explain why others do not."""

from __future__ import annotations

from curation_assets.methods.method import Method, ScoreSection
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.methods.selectors.candidates import Selector, SelectorSection
from curation_assets.methods.selectors.registry import selector_of


def what_a_selector_lacks(section: SelectorSection | None, score: ScoreSection) -> str | None:
    """Return why a selector cannot be used with a score's method, with the fix; None if it can."""
    if section is None:
        return None
    method, selector = method_of(score), selector_of(section)
    if _fits(selector, method) and not (selector.validation and not method.validation(score)):
        return None
    *most, last = [other.name for other in METHODS.values() if _fits(selector, other)] or ["(none is installed)"]
    return (
        f"{section.kind} needs {selector.needs}, which method {method.name} does not have. Choose a score with method "
        f"{', '.join(most) + ' or ' if most else ''}{last}, or another selector."
    )


def _fits(selector: Selector, method: Method) -> bool:
    """Return True if scores of a method can have what a selector needs."""
    if selector.validation and "validation" not in method.section.model_fields:
        return False
    if selector.signal is not None:
        return method.vectors == selector.signal
    return not selector.vectors or method.vectors is not None


def what_apportioning_cannot(by_tokens: bool, by_strata: bool, section: SelectorSection) -> tuple[str, str] | None:
    """Return why a selector that apportions the budget itself cannot be used: the key and the message, or None."""
    if not selector_of(section).apportions:
        return None
    if by_tokens:
        return (
            "budget",
            f"selector {section.kind} apportions a number of samples. Set fraction or samples in the budget.",
        )
    if by_strata:
        return "stratify", f"selector {section.kind} apportions the budget to groups itself. Remove stratify."
    return None
