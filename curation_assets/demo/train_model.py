"""Train the tiny model that the demo measures with, on sound traces of problems that are not in the demo.

    python -m curation_assets.demo.train_model --out curation_assets/demo/model

rebuilds the shipped model in about twelve minutes on one CPU core. Problems are generated during training, so none is
seen twice.

Labels are smoothed (see `--label-smoothing`). Sound traces of these problems can be predicted almost to the last
digit, and a model trained on them with hard labels has hardly any gradient left: what remains is noise from the few
digits that it is unsure of, and cosines between steps become meaningless. Natural text is never that certain.
Smoothing keeps a small, even gradient on every token. It was chosen to make the demo informative; the demo's results
are no evidence for how a method performs on real data.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from curation_assets.demo.corpus import draw_problems, draw_styles, generate
from curation_assets.demo.flaws import clean
from curation_assets.demo.plans import Problem

# The name of the end token is Qwen2's, whose tokenizer class would otherwise add another token.
EOS, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '" + EOS + "' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
)
VOCABULARY = 512
CONTEXT = 2048
_IGNORED = -100
_REPORT_EVERY = 100  # a progress bar would not be visible in a log file
_POOL = 32  # batches drawn together and sorted by length, to reduce padding

Example = tuple[list[int], int]
"""Token ids, and the number of them that belong to the prompt."""


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a small byte-level tokenizer in which every digit and every sign is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # AutoTokenizer reads the vocabulary into Qwen2's own class, with Qwen2's pattern. Words, digits and signs
            # are separate tokens here, so that its pattern splits at the same places.
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}|\n|\s|[^\s\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: PreTrainedTokenizerFast = _untyped(PreTrainedTokenizerFast)(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _untyped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a library function whose parameters have no types."""
    return function


def _special(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int):
        raise TypeError(f"{token} is not one token")
    return number


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Build the untrained model: Qwen2's architecture with a few hundred thousand parameters."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=_special(tokenizer, EOS),
        pad_token_id=_special(tokenizer, PAD),
    )
    return Qwen2ForCausalLM(config)


def examples(problems: Iterator[Problem], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[Example]:
    """Yield tokenised sound traces, one writer per problem."""
    for problem in problems:
        response = clean(problem, draw_styles(rng, problem.family, 1)[0]).response
        question = tokenizer.apply_chat_template([{"role": "user", "content": problem.prompt}], tokenize=False)
        if not isinstance(question, str):
            raise TypeError("the chat template gave no text")
        prompt_ids = tokenizer(question).input_ids
        yield prompt_ids + tokenizer(response + EOS).input_ids, len(prompt_ids)


def batches(stream: Iterator[Example], size: int, pad: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield padded ids and labels, grouping examples of similar length; only responses contribute to the loss."""
    order = random.Random(0)
    while True:
        pool = sorted((next(stream) for _ in range(size * _POOL)), key=lambda example: len(example[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        order.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens, _ in group])
            labels = ids.clone()
            for row, (tokens, prompt) in enumerate(group):
                labels[row, :prompt] = _IGNORED
                labels[row, len(tokens) :] = _IGNORED
            yield ids, labels


def train(
    model: PreTrainedModel,
    data: Iterator[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    rate: float,
    smoothing: float,
    progress: Progress,
) -> float:
    """Train with AdamW and a cosine schedule, and return the smoothed loss at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.05, cycle_momentum=False, final_div_factor=1000
    )
    task = progress.add_task("training", total=steps, loss=float("nan"))
    smoothed = float("nan")
    model.train()
    for step in range(steps):
        ids, labels = next(data)
        loss = functional.cross_entropy(
            model(input_ids=ids).logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=_IGNORED,
            label_smoothing=smoothing,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smoothed = loss.item() if step == 0 else 0.98 * smoothed + 0.02 * loss.item()
        progress.update(task, advance=1, loss=smoothed)
        if not progress.console.is_terminal and (step + 1) % _REPORT_EVERY == 0:
            progress.console.print(f"update {step + 1} of {steps}, loss {smoothed:.4f}")
    model.train(False)
    return smoothed


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer in the layout of `from_pretrained`, with weights as safetensors only."""
    model.generation_config = _untyped(GenerationConfig)(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m curation_assets.demo.train_model",
        description="Train the demo's tiny model on sound traces (no prompt of the demo corpus is used).",
        epilog="The defaults reproduce the shipped model, bit for bit on the same machine and torch version.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the problems (%(default)s)")
    parser.add_argument("--steps", type=int, default=2400, help="number of optimizer steps (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="traces per optimizer step (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="label smoothing (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save the model, and print the time it took."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    began = time.monotonic()
    rng = random.Random(f"demo model {options.seed}")
    problems = draw_problems(rng, skip={row["prompt"] for row in generate()})
    sample = [next(problems) for _ in range(2000)]
    texts = [text for problem in sample for text in _texts(problem, rng)]
    tokenizer = build_tokenizer(texts)
    model = build_model(tokenizer, options.seed)
    console.print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    data = batches(examples(problems, tokenizer, rng), options.batch_size, _special(tokenizer, PAD))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        loss = train(model, data, options.steps, options.learning_rate, options.label_smoothing, progress)
    save(model, tokenizer, options.out)
    console.print(f"loss {loss:.4f}, {time.monotonic() - began:.0f} s, written to {options.out}")


def _texts(problem: Problem, rng: random.Random) -> Iterator[str]:
    yield f"Question: {problem.prompt}\n"
    for style in draw_styles(rng, problem.family, 3):
        yield clean(problem, style).response


if __name__ == "__main__":
    main()
