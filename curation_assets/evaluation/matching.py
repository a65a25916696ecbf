"""Whether what a model wrote is right: exact match of the answers, normalised.

The answer is found by the markers that segmentation knows, and compared as rows' answers are: neither is done twice.
"""

from __future__ import annotations

from curation_assets.evaluation.benchmarks import stated_answer
from curation_assets.steps.correctness import same_answer


def judged(text: str, reference: str) -> tuple[str | None, bool]:
    """The answer that a text states, and whether it says the same as the right one; a text without one is wrong.

    `1,000` is `1000`, `$5.` is `5`, `\\\\boxed{7}` is `7` (`curation_assets.steps.correctness.same_answer`).
    """
    answer = stated_answer(text)
    return answer, answer is not None and same_answer(answer, reference)
