"""The folder of cases, if there is one: every case comes out as expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cases.__main__ import main
from tests.cases.all_cases import CASES
from tests.cases.findings import Case, Findings

FOLDER = Path(os.environ.get("CURATION_TEST_CASES", Path(__file__).parents[2] / ".." / "shared" / "cases"))
SLOW = {"17-chat-templates", "18-model-folders", "29-warehouse-in-landing", "30-export-round-trip"}
"""Cases that take more than ten seconds."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in SLOW else []) for case in CASES],
)
def test_a_case_comes_out_as_expected(case: Case) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there: set CURATION_TEST_CASES to the folder of cases")
    found = case.run(FOLDER)
    assert found.differences == []
    assert found.checks


def test_a_missing_folder_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path), "--only", "01-"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "DIFFERS: the folder is missing" in lines[1]
    assert lines[-1] == '{"cases": 1, "as_expected": 0}'


def test_a_difference_and_an_exception_are_reported(tmp_path: Path) -> None:
    def check(_folder: Path, found: Findings) -> None:
        found.equal("rows", 2, 3)
        found.contains("detail", "a message", "message", "other")
        raise ValueError("odd")

    (tmp_path / "00-odd").mkdir()
    found = Case("00-odd", "differs", check).run(tmp_path)
    assert found.checks == 3
    assert found.differences[:2] == ["rows: expected 3, found 2", "detail: expected ['other'], found 'a message'"]
    assert found.differences[2].startswith("ValueError: 'odd' (test_cases.py:")
