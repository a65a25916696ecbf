"""All cases, in the order of their names."""

from __future__ import annotations

from tests.cases.runs import RUNS
from tests.cases.shapes import SHAPES
from tests.cases.steps import STEPS
from tests.cases.tables import TABLES

CASES = tuple(sorted((*RUNS, *SHAPES, *STEPS, *TABLES), key=lambda case: case.name))
