"""All selectors by kind: those of this package, and those that other packages add through entry points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from curation_assets.methods import selectors
from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection
from curation_resources.plugins import declared_in, plugins

GROUP = "curation_assets.selectors"
"""Entry points of this group name a `Selector`."""


def _find() -> dict[str, Selector]:
    found: dict[str, Selector] = {}
    own = declared_in(selectors, "SELECTORS", Selector, skip=__name__)
    for selector in [*own, *plugins(GROUP, Selector)]:
        if selector.kind in found:
            raise ImportError(f"two selectors are called {selector.kind}")
        found[selector.kind] = selector
    return found


SELECTORS: dict[str, Selector] = _find()


def selector_of(section: SelectorSection) -> Selector:
    """Return the selector that parameters belong to."""
    return SELECTORS[section.kind]


def order_by_stratum(section: SelectorSection, candidates: Candidates, stratum: NDArray[np.int64]) -> Choice:
    """Return the order in which a selector takes samples when it selects within each stratum [N] separately.

    The first of every stratum come first, then the second: what is left over goes round the strata.
    """
    order = selector_of(section).order
    assert order is not None, f"selector {section.kind} ranks rows by keys"
    ranks, orders, left_out, warnings = [], [], dict[str, int](), dict[str, None]()
    for number in np.unique(stratum[candidates.may]):
        own = order(section, replace(candidates, may=candidates.may & (stratum == number)))
        orders.append(own.order)
        ranks.append(np.arange(len(own.order)))
        for reason, count in own.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
        warnings |= dict.fromkeys(own.warnings)
    if not orders:
        return Choice(np.empty(0, dtype=np.int64))
    return Choice(np.concatenate(orders)[np.argsort(np.concatenate(ranks), kind="stable")], left_out, tuple(warnings))
