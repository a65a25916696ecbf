"""Drawn tokens: by their probabilities, by the answer's own seed, and never by what shares the batch."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from curation_resources.models.generation import GenerationSpec, Generator, open_generator
from curation_resources.scoring.sampling import draw
from curation_resources.scoring.spec import Sampling
from tests.models import write_tiny_model

PROMPTS = [[{"role": "user", "content": "x" * length}] for length in (1, 30, 4, 12, 2, 80, 7)]
NAMES = [f"prompt-{place}/0" for place in range(len(PROMPTS))]
SAMPLING = Sampling(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), seed=5, context=256)
    return open_generator(GenerationSpec(folder, device="cpu", max_new_tokens=16))


def plain_draw(logits: list[float], uniform: float, temperature: float, top_p: float) -> int:
    """The drawn token, one after another."""
    weights = [np.exp((logit - max(logits)) / temperature) for logit in logits]
    chances = [weight / sum(weights) for weight in weights]
    kept: set[int] = set()
    for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
        # Rounded, the likeliest tokens may already add up to 1.
        if top_p >= 1.0 or sum(chances[other] for other in kept) < top_p:
            kept.add(token)
    passed, total = 0.0, sum(chances[token] for token in kept)
    for token in sorted(kept):
        passed += chances[token]
        if uniform * total < passed:
            return token
    return max(kept)


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12, unique_by=lambda value: round(value, 2)),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0.31, 0.77, 1.0]),
)
def test_a_token_is_where_its_number_falls(
    logits: list[float], uniform: float, temperature: float, top_p: float
) -> None:
    found = draw(torch.tensor([logits]), torch.tensor([uniform]), Sampling(temperature, top_p))
    expected = {plain_draw(logits, near, temperature, top_p) for near in (uniform, uniform - 1e-7, uniform + 1e-7)}
    assert int(found) in expected


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])
    sampling = Sampling(temperature=0.7, top_p=0.95)
    numbers = torch.from_numpy(sampling.numbers("a name", 40_000))
    drawn = draw(logits.expand(len(numbers), -1), numbers, sampling)
    # What transformers would draw from.
    warped = TopPLogitsWarper(0.95)(torch.empty(1, 0), (logits / 0.7)[None])[0].softmax(-1)
    counts = torch.bincount(drawn, minlength=5) / len(drawn)
    assert torch.equal(counts > 0, warped > 0)
    torch.testing.assert_close(counts.float(), warped, atol=0.01, rtol=0)


def test_numbers_at_the_ends_and_impossible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(logits, ends, Sampling()).tolist() == [1, 2]


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_an_answer_is_its_own_whatever_shares_the_batch(generator: Generator, batch_tokens: int) -> None:
    expected = dict(zip(NAMES, generator.generate(PROMPTS, None, SAMPLING, NAMES), strict=True))
    order = list(range(len(PROMPTS)))
    random.Random(batch_tokens).shuffle(order)
    other = Generator(generator.checkpoint, generator.encoder, 16, batch_tokens)
    found = other.generate([PROMPTS[at] for at in order], None, SAMPLING, [NAMES[at] for at in order])
    assert found == [expected[NAMES[at]] for at in order]


def test_names_and_seeds_draw_anew_and_a_low_temperature_takes_the_likeliest(generator: Generator) -> None:
    prompts = [PROMPTS[3]] * 6
    names = [f"prompt/{place}" for place in range(6)]
    texts = [answer.text for answer in generator.generate(prompts, None, Sampling(), names)]
    assert len(set(texts)) == 6
    assert [answer.text for answer in generator.generate(prompts, None, Sampling(), names)] == texts
    others = [answer.text for answer in generator.generate(prompts, None, Sampling(seed=1), names)]
    assert not set(others) & set(texts)
    cold = generator.generate(prompts, None, Sampling(temperature=1e-4), names)
    assert Counter(answer.text for answer in cold) == {generator.generate(prompts[:1])[0].text: 6}


def test_the_first_numbers_do_not_depend_on_how_many_are_wanted() -> None:
    assert SAMPLING.numbers("a", 5).tolist() == SAMPLING.numbers("a", 50).tolist()[:5]
    assert SAMPLING.numbers("a", 5).tolist() != SAMPLING.numbers("b", 5).tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, 1.5), (float("nan"), 1)])
def test_what_cannot_be_drawn_with_is_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match=r"\. Set (a positive )?one"):
        Sampling(temperature, top_p)


def test_a_folder_of_a_model_is_all_that_is_needed(tmp_path: Path) -> None:
    made = open_generator(GenerationSpec(write_tiny_model(tmp_path / "model"), device="cpu", max_new_tokens=3))
    (answer,) = made.generate(PROMPTS[:1], None, Sampling(), ["one"])
    assert 0 < answer.tokens <= 3
