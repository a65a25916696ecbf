"""The shipped model: it loads like any other, its offsets are right, and it knows sound traces from flawed ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import curation_assets.demo
from curation_assets.demo.corpus import DEFAULT_PROMPTS, generate
from curation_assets.demo.train_model import build_model, build_tokenizer, main, parse_arguments

FOLDER = Path(curation_assets.demo.__file__).parent / "model"
HELD_OUT_SEED = 12345


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So small a model gains nothing from threads, and loses much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    known = {row["prompt"] for row in generate(0, DEFAULT_PROMPTS)}
    return [row for row in generate(HELD_OUT_SEED, 60) if row["prompt"] not in known]


def question(tokenizer: Any, prompt: str) -> str:
    turns = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def loss(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Mean negative log-likelihood of a row's response."""
    head = tokenizer(question(tokenizer, row["prompt"])).input_ids
    tail = tokenizer(row["response"]).input_ids
    ids = torch.tensor([head + tail])
    labels = torch.tensor([[-100] * len(head) + tail])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


def greedy(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """The model's own responses, drawn without chance."""
    questions = [question(tokenizer, prompt) for prompt in prompts]
    inputs = tokenizer(questions, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        output = model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=128, do_sample=False
        )
    return list(tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True))


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")]
    assert (FOLDER / "model.safetensors").stat().st_size < 4_000_000
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names


def test_shape(model: Any, tokenizer: Any) -> None:
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.max_position_embeddings >= 1024
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    "text",
    ["Step 1: 12 + 5 = 17\nAnswer: 17", "  two  blanks,\ttab\r\n\n\\boxed{3}", "† Größe 12 × 3 = 36 😀 漢字", ""],
)
def test_offsets_map_back_to_the_text(tokenizer: Any, text: str) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    covered = 0
    for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        piece = tokenizer.decode([token])
        if "\ufffd" not in piece:  # part of a character: its offsets are those of the whole character
            assert text[start:end] == piece
        assert start <= covered
        covered = max(covered, end)
    assert covered == len(text)


def test_offsets_over_the_corpus(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        encoded = tokenizer(row["response"], return_offsets_mapping=True)
        pieces = [row["response"][start:end] for start, end in encoded.offset_mapping]
        assert "".join(pieces) == row["response"]
        assert all(not (piece[:1].isdigit() and len(piece) > 1) for piece in pieces)


def test_the_file_and_the_class_that_reads_it_cut_alike(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """AutoTokenizer gives Qwen2's class, which brings a pattern of its own: training used the file's."""
    file = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    texts = [f"Question: {row['prompt']}\n{row['response']}{tokenizer.eos_token}" for row in rows]
    for text in texts:
        assert tokenizer(text).input_ids == file.encode(text).ids


def test_padding_is_told_apart(tokenizer: Any) -> None:
    batch = tokenizer(["12 + 5", "1"], padding=True, return_tensors="pt")
    assert batch.attention_mask.tolist()[1] == [1] + [0] * (batch.input_ids.shape[1] - 1)


def test_chat_template(tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 2."}]
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert head == "Be brief.\nQuestion: Add 1 and 2.\n"
    turns.append({"role": "assistant", "content": "Answer: 3"})
    assert tokenizer.apply_chat_template(turns, tokenize=False) == f"{head}Answer: 3{tokenizer.eos_token}"


def test_greedy_answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    short = [row for row in rows if row["labels"]["flaw"] == "clean" and row["labels"]["steps"] <= 6]
    answers = {row["prompt"]: row["labels"]["right_answer"] for row in short}
    prompts = list(answers)[:20]
    right = 0
    for prompt, text in zip(prompts, greedy(model, tokenizer, prompts), strict=True):
        last = text.strip().rsplit("\n", 1)[-1]
        right += last in {form.format(answers[prompt]) for form in ("Answer: {}", "#### {}", "\\boxed{{{}}}")}
    assert right >= 0.5 * len(prompts)


def test_sound_traces_are_likelier_than_flawed_ones(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row["labels"]["flaw"], []).append(loss(model, tokenizer, row))
    sound = mean(losses["clean"])
    for kind in ("wrong_step", "wrong_answer", "irrelevant", "shuffled"):
        assert mean(losses[kind]) > 1.2 * sound, kind


def test_training_repeats_itself_and_makes_the_shipped_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        main(["--out", str(tmp_path / name), "--steps", "2", "--batch-size", "2"])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    made = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert made.get_vocab() == tokenizer.get_vocab()
    assert made.chat_template == tokenizer.chat_template


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    for word in ("--seed", "--steps", "sound traces", "shipped model"):
        assert word in text


def test_untrained_model_is_seeded() -> None:
    tokenizer = build_tokenizer(["Step 1: 1 + 1 = 2"])
    first, second = (build_model(tokenizer, 3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
