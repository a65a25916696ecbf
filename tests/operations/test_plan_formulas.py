"""The cost model: GRAPE's Table 13 cell by cell, its texts evaluated against the functions, numbers by hand."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from curation_assets.methods.registry import METHODS
from curation_assets.operations.plan_formulas import FORMULAS, Formula, Sizes, formula_of, training

TABLE_13 = {
    "GRAPE (ours)": "grape",
    "Gradient-based influence (LESS)": "less",
    "In-run gradient-based influence": "in_run",
    "Gradient matching": "tagcos",
    "Gradient norm": "grand",
    "Embedding-based": "embeddings",
    "Simple uncertainty indicators": "uncertainty",
    "Perplexity": "perplexity",
    "Learnability": "learnability",
    "Loss trajectory (S2L)": "s2l",
}
SIZES = [
    Sizes(samples=1000),
    Sizes(samples=1000, trained=700, warmup=50, reference=300, epochs=4, inits=10, prefix=Fraction(1, 8)),
    Sizes(samples=7, trained=0, warmup=1, reference=2, epochs=3, inits=2, prefix=Fraction(2, 7)),
]


def normal(text: str) -> str:
    """A cost without spaces, stars and underscores."""
    return re.sub(r"[ *_]", "", text)


def evaluated(text: str, sizes: Sizes) -> Fraction:
    """A cost's text as a number, by its grammar: factors side by side, C(model, data, epochs) = 3 |data| epochs."""
    data = {"D": sizes.data, "D_warmup": sizes.warmup, "D_ref": sizes.reference_data}
    letters = {"N": sizes.samples, "T": sizes.epochs, "m": sizes.inits, "F": 1, "F_ref": 1}
    product, rest = Fraction(1), text
    trained = re.search(r"C\((\w+), (\w+), (\w+)\)", text)
    if trained is not None:
        epochs = sizes.epochs if trained[3] == "T" else int(trained[3])
        product *= 3 * data[trained[2]] * epochs
        rest = text.replace(trained[0], "")
    for factor in rest.split():
        if factor == "p":
            product *= sizes.prefix
        else:
            product *= letters[factor] if factor in letters else int(factor)
    return product


@pytest.mark.data
def test_the_texts_are_those_of_table_13(real_data: Path) -> None:
    table = json.loads((real_data / "grape_tables.json").read_text())["table13_cost"]["rows"]
    assert {row[0] for row in table} == set(TABLE_13)
    for name, checkpoint, scoring in table:
        formula = FORMULAS[TABLE_13[name]]
        assert (normal(formula.checkpoint), normal(formula.scoring)) == (normal(checkpoint), normal(scoring)), name


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", list(FORMULAS))
def test_the_functions_say_what_the_texts_say(name: str, sizes: Sizes) -> None:
    formula = FORMULAS[name]
    # The endpoint of TEMP is trained on a warm-up's samples.
    assert formula.cost(sizes) == (evaluated(formula.checkpoint, sizes), evaluated(formula.scoring, sizes))


def test_numbers_by_hand() -> None:
    sizes = Sizes(samples=1000, warmup=50, epochs=4, inits=10)
    assert training(50, 4) == 600
    assert FORMULAS["less"].cost(sizes) == (600, 12_000)
    assert FORMULAS["grand"].cost(sizes) == (30_000, 30_000)
    assert FORMULAS["s2l"].cost(sizes) == (12_000, 4_000)
    assert FORMULAS["learnability"].cost(sizes) == (3_000, 2_000)
    # GRACE's warm-up is on a twentieth of the data, for one epoch: fifteen percent of a pass over it.
    assert FORMULAS["grace"].cost(sizes) == (150, 1_000)


def test_every_method_that_is_measured_here_has_a_formula() -> None:
    for method in METHODS.values():
        formula = formula_of(method.name, method.cost)
        if formula is not None and formula.checkpoint == "0":
            assert method.cost == formula.scoring, method.name
    assert formula_of("random", "0") is FORMULAS["random"]
    assert isinstance(formula_of("mean_entropy", "N F"), Formula)
    assert formula_of("unheard_of", "N log N") is None
