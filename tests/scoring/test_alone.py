"""The scoring code runs where nothing of ours and none of the data stack is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.scoring.perturbed_cases import write_endpoint

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"dagster", "polars", "duckdb", "pyarrow", "pydantic", "curation_assets"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.loading import load_checkpoint
from curation_resources.scoring.samples import Request, Sample, Segment

checkpoint = load_checkpoint(Path(sys.argv[1]), device="cpu")
encoder = Encoder(checkpoint.tokenizer, "auto", checkpoint.max_length)
turns = [{"role": "user", "content": "1 + 1"}]
sample = Sample("s", turns, "one and one\\nAnswer: 2", [Segment(1, 0, 11), Segment(0, 20, 21)])
request = Request(step_gradients="bias", likelihoods=True, segment_likelihoods=True, embeddings=frozenset({"mean"}))
(result,) = ForwardPass(checkpoint, encoder).measure([sample], request)
assert result.step_gradients is not None and len(result.step_gradients.gram) == 3
assert result.likelihoods is not None and len(result.segment_nll) == 2 and len(result.embeddings) == 1

from curation_resources.scoring.perturbed import make_perturbed_pass
from curation_resources.scoring.samples import PerturbedRequest
from curation_resources.scoring.sigma import find_sigma
from curation_resources.scoring.spec import PassSpec, PerturbedSpec

perturbed = make_perturbed_pass(PerturbedSpec(PassSpec(Path(sys.argv[1])), Path(sys.argv[2])), "cpu")
sigma = find_sigma(perturbed, [sample]).sigma
(result,) = perturbed.measure([sample], PerturbedRequest(sigma=sigma))
assert result.base.keys() == result.random.keys() == {100} and len(result.directional) == 8
"""


def test_scoring_runs_on_a_bare_box(tiny_model: Path, tmp_path: Path) -> None:
    package = ROOT / "resources" / "curation_resources"
    shutil.copytree(package / "scoring", tmp_path / "curation_resources" / "scoring")
    shutil.copy(package / "__init__.py", tmp_path / "curation_resources" / "__init__.py")
    script = tmp_path / "bare.py"
    script.write_text(SCRIPT)
    endpoint = write_endpoint(tiny_model, tmp_path / "endpoint")
    command = [sys.executable, str(script), str(tiny_model), str(endpoint)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
