"""Model folders: what is refused before anything is loaded, and what counts as the same model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curation_resources.models.model_files import (
    INDEX_FILE,
    ModelError,
    adapter_digest,
    check_kind,
    check_model_folder,
    check_weights,
    opens_thought,
    processor_digest,
    resolve_model,
    tokenizer_digest,
    weights_digest,
)
from curation_resources.storage.digests import DigestCache


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def weights_of(folder: Path) -> str:
    return weights_digest(folder, DigestCache())


def tokenizer_of(folder: Path) -> str:
    return tokenizer_digest(folder, DigestCache())


def test_a_whole_model_is_accepted(model: Path) -> None:
    check_model_folder(model)


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("config.json", "has no config.json. Name a transformers model folder"),
        ("tokenizer.json", r"has no tokenizer.json: .*Save one with tokenizer.save_pretrained"),
        ("model.safetensors", "has no .safetensors weights"),
    ],
)
def test_what_a_model_must_have(model: Path, absent: str, message: str) -> None:
    (model / absent).unlink()
    with pytest.raises(ModelError, match=message):
        check_model_folder(model)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist\. Correct targets\.model"):
        check_model_folder(tmp_path / "none")


def test_pickled_weights_alone_are_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(
        ModelError, match=r"only pickled weights \(pytorch_model\.bin\), which are never loaded\. Convert"
    ):
        check_model_folder(model)


@pytest.mark.parametrize("text", ["{", "[]", "3", ""])
def test_a_damaged_config_is_refused_with_the_mend(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    for look in (check_model_folder, weights_of):
        with pytest.raises(ModelError, match=r"config\.json is not .*\. Copy or download the model again"):
            look(model)


def test_sharded_weights_must_all_be_there(model: Path) -> None:
    """As after a download that was interrupted."""
    shutil.move(model / "model.safetensors", model / "model-00001-of-00002.safetensors")
    index = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(ModelError, match=r"lacks weights .*\(model-00002-of-00002\.safetensors\)\. Copy or download"):
        check_model_folder(model)
    (model / "model-00002-of-00002.safetensors").touch()
    check_model_folder(model)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_weights_that_are_cut_short_are_named(model: Path, kept: int) -> None:
    check_weights(model)
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or truncated .*\. Copy or download it again"):
        check_weights(model)


def test_a_language_model_is_no_reward_model(model: Path) -> None:
    check_kind(model, "language")
    with pytest.raises(
        ModelError, match=r"is a Qwen2ForCausalLM, not a reward model\. Name the folder of a reward model"
    ):
        check_kind(model, "reward")
    config = json.loads((model / "config.json").read_text())
    for changes in (
        {"architectures": ["Qwen2ForSequenceClassification"]},
        {"architectures": None},
        {"architectures": ["Own"], "auto_map": {"AutoModelForSequenceClassification": "own.Own"}},
    ):
        (model / "config.json").write_text(json.dumps(config | changes))
        check_kind(model, "reward")


def test_checks_and_hashes_load_no_model(model: Path) -> None:
    """The code server asks for fingerprints every half minute."""
    code = (
        "import sys; from pathlib import Path; from curation_resources.storage.digests import DigestCache\n"
        "from curation_resources.models.model_files import *\n"
        "folder = resolve_model(sys.argv[1], None, Path()); check_model_folder(folder)\n"
        "weights_digest(folder, DigestCache()); tokenizer_digest(folder, DigestCache())\n"
        "assert not {'torch', 'transformers', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(model)], check=True, cwd=Path(__file__).parents[2])


# Finding


def test_folders_are_relative_to_the_configuration(model: Path) -> None:
    for name in ("model", "./model", "../" + model.parent.name + "/model", str(model)):
        assert resolve_model(name, None, model.parent) == model.resolve()


def test_a_folder_in_the_home(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve_model("~/model", None, tmp_path / "elsewhere") == model.resolve()


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none", "a/b/c"])
def test_paths_that_lead_nowhere_are_never_asked_of_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"model folder .* does not exist\. Correct targets\.model"):
        resolve_model(name, None, tmp_path)


@pytest.mark.parametrize("name", ["", "not a model!", "a--b", ".hidden", "x\0y", "~nobody-of-that-name/model"])
@pytest.mark.parametrize("download", [True, False])
def test_what_is_neither_path_nor_hub_id(tmp_path: Path, name: str, download: bool) -> None:
    with pytest.raises(ModelError, match=r"Correct targets\.model in curation\.yaml"):
        resolve_model(name, None, tmp_path, download)


def test_a_hub_id_that_is_not_cached_gives_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        ModelError, match=r"neither a folder \(.*\) nor in the local hub cache\. .*`curate run` download"
    ):
        resolve_model("some-org/some-model", None, tmp_path, download=False)
    with pytest.raises(ModelError, match=r"neither a folder .* nor available from the hub"):
        resolve_model("some-org/some-model", None, tmp_path, download=True)


def cache_snapshot(cache: Path, model: Path, files: list[str]) -> Path:
    """A hub cache that holds some of a model's files."""
    repo = cache / "models--org--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    for name in files:
        shutil.copy(model / name, snapshot / name)
    return snapshot


def test_a_whole_snapshot_is_taken_from_the_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_snapshot(tmp_path / "hub", model, [path.name for path in model.iterdir()])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for download in (True, False):
        assert resolve_model("org/model", None, tmp_path, download) == snapshot


def test_a_snapshot_of_the_tokenizer_alone_is_completed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_snapshot(tmp_path / "hub", model, ["config.json", "tokenizer.json"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options.get("local_files_only", False)))
        return str(tmp_path / "hub" / "models--org--model" / "snapshots" / ("0" * 40))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    resolve_model("org/model", None, tmp_path, download=True)
    assert asked == [("org/model", True), ("org/model", False)]
    asked.clear()
    resolve_model("org/model", None, tmp_path, download=False)
    assert asked == [("org/model", True)]


# Hashes


def test_a_copy_under_another_name_is_the_same_model(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "deep" / "other name"))
    assert weights_of(copy) == weights_of(model)
    assert tokenizer_of(copy) == tokenizer_of(model)


def test_who_wrote_a_model_does_not_count(model: Path) -> None:
    before = weights_of(model)
    edit_json(model / "config.json", transformers_version="0.0", _name_or_path="/elsewhere", dtype="float16")
    (model / "README.md").write_text("A model.")
    (model / "helper.py").write_text("never run")
    assert weights_of(model) == before


@pytest.mark.parametrize(
    "change", [{"rope_theta": 5.0}, {"rms_norm_eps": 0.5}, {"num_attention_heads": 2}, {"unheard_of": None}]
)
def test_what_a_model_computes_counts(model: Path, change: dict[str, Any]) -> None:
    before = weights_of(model)
    edit_json(model / "config.json", **change)
    assert weights_of(model) != before


@pytest.mark.parametrize("position", [0.5, -1])
def test_one_byte_of_the_weights_counts(model: Path, position: float) -> None:
    before = weights_of(model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[int(position * len(data)) if position > 0 else -1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert weights_of(model) != before


def test_code_counts_where_the_config_has_it_run(model: Path) -> None:
    edit_json(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (model / "modeling.py").write_text("one")
    before = weights_of(model)
    (model / "modeling.py").write_text("two")
    assert weights_of(model) != before


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "merges.txt"])
def test_how_text_becomes_tokens_counts(model: Path, file: str) -> None:
    before = tokenizer_of(model)
    with (model / file).open("a") as stream:
        stream.write(" ")
    assert tokenizer_of(model) != before
    assert weights_of(model) == weights_of(model)


def test_what_is_no_tokenizer_file_does_not_count(model: Path) -> None:
    before = tokenizer_of(model)
    (model / "README.md").write_text("A model.")
    edit_json(model / "config.json", rope_theta=5.0)
    assert tokenizer_of(model) == before


def test_how_images_become_tensors_counts_for_models_that_see_them(model: Path) -> None:
    cache = DigestCache()
    assert processor_digest(model, cache) is None
    # A text model that was saved with some processor looks at no image all the same.
    (model / "preprocessor_config.json").write_text('{"size": 1}')
    text = tokenizer_of(model)
    assert processor_digest(model, cache) is None
    edit_json(model / "config.json", vision_config={})
    first = processor_digest(model, cache)
    assert first is not None
    (model / "preprocessor_config.json").write_text('{"size": 22}')
    assert first != processor_digest(model, cache)
    assert tokenizer_of(model) == text


def test_an_adapter_is_its_weights_and_what_scales_them(tmp_path: Path) -> None:
    config = {"r": 8, "lora_alpha": 32, "use_rslora": False, "target_modules": ["q", "k"], "base_model": "/here"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    before = adapter_digest(tmp_path, DigestCache())
    edit_json(tmp_path / "adapter_config.json", target_modules=["k", "q"], base_model="/there")
    assert adapter_digest(tmp_path, DigestCache()) == before
    edit_json(tmp_path / "adapter_config.json", lora_alpha=16)
    assert adapter_digest(tmp_path, DigestCache()) != before
    edit_json(tmp_path / "adapter_config.json", lora_alpha=32)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"WEIGHTS")
    assert adapter_digest(tmp_path, DigestCache()) != before


OPENS = "{% for turn in messages %}{{ turn.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
CLOSED = "{{ messages[0].content }}{% if not thinks %}<think>\n\n</think>\n\n{% endif %}"


@pytest.mark.parametrize(
    ("file", "text", "opens"),
    [
        ("chat_template.jinja", OPENS, True),
        ("chat_template.jinja", CLOSED, False),
        ("chat_template.jinja", "{{ messages[0].content }}", False),
        ("chat_template.jinja", "{{ raise_exception('never') }}<think>", False),
        ("tokenizer_config.json", json.dumps({"chat_template": OPENS}), True),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": OPENS}]}), True),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "tools", "template": OPENS}]}), False),
        ("tokenizer_config.json", "{}", False),
    ],
)
def test_templates_that_open_a_thought_are_known(tmp_path: Path, file: str, text: str, opens: bool) -> None:
    (tmp_path / file).write_text(text)
    assert opens_thought(tmp_path, DigestCache()) == opens
    # A template that is changed is looked at again.
    (tmp_path / "chat_template.jinja").write_text(OPENS + " ")
    assert opens_thought(tmp_path, DigestCache())
