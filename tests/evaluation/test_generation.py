"""Greedy generation in padded batches, against one prompt at a time: no padding, no cache, not transformers' loop."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from curation_resources.models.generation import Generated, GenerationError, GenerationSpec, Generator, open_generator
from curation_resources.scoring.loading import load_checkpoint
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TrainingSpec, train
from tests.models import write_tiny_model
from tests.scoring.cases import random_samples

ROOT = Path(__file__).parents[2]
NEW = 24
ENDS = [0, *range(2, 258, 32)]


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS = [
    asking("x" * length + text)
    for length, text in (
        (0, "1 + 1"),
        (40, "Größe?"),
        (3, "\n\n2"),
        (90, "a"),
        (7, ""),
        (1, "= 2"),
        (2, "?"),
        (11, "3"),
    )
]


@pytest.fixture(scope="module")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose answers many tokens end, so that they differ in length."""
    folder = write_tiny_model(tmp_path_factory.mktemp("ending"), seed=5, context=256)
    GenerationConfig(eos_token_id=ENDS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator(ending_model: Path) -> Generator:
    return open_generator(GenerationSpec(ending_model, device="cpu", max_new_tokens=NEW))


def one_by_one(folder: Path, turns: list[dict[str, str]], new: int, context: int, adapter: Path | None = None) -> Any:
    """Tokens of an answer: the likeliest next one of the whole sequence, again and again."""
    checkpoint = load_checkpoint(folder, adapter, device="cpu")
    text = checkpoint.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
    made: list[int] = []
    while len(made) < new and len(ids) + len(made) < context:
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([ids + made]), use_cache=False).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] in ENDS:
            break
    return made, checkpoint.tokenizer


def as_slow(
    folder: Path, turns: list[dict[str, str]], new: int, context: int, adapter: Path | None = None
) -> Generated:
    made, tokenizer = one_by_one(folder, turns, new, context, adapter)
    finished = bool(made) and made[-1] in ENDS
    return Generated(tokenizer.decode(made[:-1] if finished else made, skip_special_tokens=True), len(made), finished)


def test_batches_answer_as_a_loop_without_padding_does(ending_model: Path, generator: Generator) -> None:
    found = generator.generate(PROMPTS)
    assert found == [as_slow(ending_model, turns, NEW, 256) for turns in PROMPTS]
    # The case is one: some end by themselves, at different places, and some do not.
    assert {answer.finished for answer in found} == {True, False}
    assert len({answer.tokens for answer in found}) > 2


@pytest.mark.parametrize("batch_tokens", [1, 200, 100_000])
def test_neither_order_nor_batches_matter(generator: Generator, batch_tokens: int) -> None:
    expected = dict(zip(range(len(PROMPTS)), generator.generate(PROMPTS), strict=True))
    order = list(expected)
    random.Random(batch_tokens).shuffle(order)
    other = Generator(generator.checkpoint, generator.encoder, NEW, batch_tokens)
    told: list[int] = []
    found = other.generate([PROMPTS[place] for place in order], told.append)
    assert found == [expected[place] for place in order]
    assert sum(told) == len(PROMPTS)


def test_answers_end_at_the_context_and_too_long_prompts_are_told(ending_model: Path) -> None:
    spec = GenerationSpec(ending_model, device="cpu", max_length=64, max_new_tokens=50)
    prompts = [asking("x" * 20), asking("x" * 35), asking("x" * 200)]
    found = open_generator(spec).generate(prompts)
    assert found[:2] == [as_slow(ending_model, turns, 50, 64) for turns in prompts[:2]]
    assert found[2] == Generated("", 0, False, "prompt_too_long")
    assert open_generator(spec).generate([]) == []


def test_what_the_folder_says_of_sampling_and_penalties_is_not_heeded(ending_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ending_model, folder)
    expected = [as_slow(ending_model, turns, NEW, 256) for turns in PROMPTS]
    settings = GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        min_new_tokens=9,
        no_repeat_ngram_size=1,
        eos_token_id=ENDS,
    )
    settings.save_pretrained(folder)
    asked = open_generator(GenerationSpec(folder, device="cpu", max_new_tokens=NEW))
    assert asked.generate(PROMPTS) == expected


def test_tokens_that_the_folder_names_end_an_answer_too(
    ending_model: Path, generator: Generator, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ending_model, folder)
    (folder / "generation_config.json").unlink()
    (whole,) = open_generator(GenerationSpec(folder, device="cpu", max_new_tokens=NEW)).generate(PROMPTS[:1])
    (found,) = generator.generate(PROMPTS[:1])
    assert (whole.tokens, whole.finished) == (NEW, False)
    assert found.finished
    assert whole.text.startswith(found.text)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_trained_weights_are_asked(ending_model: Path, tmp_path: Path, adapter: Any) -> None:
    recipe = Recipe(adapter=adapter, learning_rate=1e-2, batch_size=4, epochs=2)
    train(TrainingSpec(ending_model, device="cpu"), random_samples(8, seed=1), tmp_path / "out", recipe)
    lora = adapter == "lora"
    folder, beside = (ending_model, tmp_path / "out") if lora else (tmp_path / "out", None)
    found = open_generator(GenerationSpec(folder, beside, device="cpu", max_new_tokens=NEW)).generate(PROMPTS)
    assert found == [as_slow(folder, turns, NEW, 256, beside) for turns in PROMPTS]
    assert found != [as_slow(ending_model, turns, NEW, 256) for turns in PROMPTS]


def test_a_batch_that_does_not_fit_is_halved(generator: Generator) -> None:
    class Small(Generator):
        def _run(self, prompts: list[list[int]], draws: Any) -> list[list[int]]:
            if len(prompts) > most:
                raise torch.OutOfMemoryError("out of memory")
            return super()._run(prompts, draws)

    small = Small(generator.checkpoint, generator.encoder, NEW)
    most = 1
    assert small.generate(PROMPTS) == generator.generate(PROMPTS)
    most = 0
    with pytest.raises(GenerationError, match="do not fit into the memory"):
        small.generate(PROMPTS)


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    spec = GenerationSpec(folder, device="cpu", max_new_tokens=2)
    made = open_generator(spec)
    made.encoder._template = "{{ raise_exception('no') }}"
    assert made.generate(PROMPTS[:1]) == [Generated("", 0, False, "template_refused")]
    plain = open_generator(replace(spec, template="plain"))
    assert plain.generate(PROMPTS[:1])[0].tokens > 0


SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"dagster", "polars", "duckdb", "pyarrow", "pydantic", "curation_assets"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from curation_resources.models.generation import GenerationSpec, open_generator

generator = open_generator(GenerationSpec(Path(sys.argv[1]), device="cpu", max_new_tokens=3))
(made,) = generator.generate([[{"role": "user", "content": "1 + 1"}]])
assert 0 < made.tokens <= 3
"""


def test_answers_on_a_bare_box(tiny_model: Path, tmp_path: Path) -> None:
    package = ROOT / "resources" / "curation_resources"
    shutil.copytree(package / "scoring", tmp_path / "curation_resources" / "scoring")
    (tmp_path / "curation_resources" / "models").mkdir()
    for name in ("__init__.py", "models/__init__.py", "models/generation.py", "quiet.py"):
        shutil.copy(package / name, tmp_path / "curation_resources" / name)
    script = tmp_path / "bare.py"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(tiny_model)], check=True, cwd=tmp_path, timeout=300)
