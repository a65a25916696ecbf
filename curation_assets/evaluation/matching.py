"""Exact match of normalised answers.

Answers are found by the markers that segmentation uses, and compared like the answers of rows, with the same code.
"""

from __future__ import annotations

from curation_assets.evaluation.benchmarks import stated_answer
from curation_assets.steps.correctness import same_answer


def judged(text: str, reference: str) -> tuple[str | None, bool]:
    """Return the answer stated in a text, and whether it matches the reference; a text without one is wrong.

    `1,000` is `1000`, `$5.` is `5`, `\\\\boxed{7}` is `7` (`curation_assets.steps.correctness.same_answer`).
    """
    answer = stated_answer(text)
    return answer, answer is not None and same_answer(answer, reference)
