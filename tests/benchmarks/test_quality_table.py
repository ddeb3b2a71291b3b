"""The table of all precisions: what a row says, what is missing is named, and the marks of the page are filled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from machine import describe
from precisions import Settings, make
from quality_table import Result, Speed, graphs, render, summary
from report import replace_region

from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.recogniser import WordErrors
from voxedge.calibration.report import (
    GraphReport,
    GraphSize,
    SpeechDifference,
    SpeechReport,
    UtteranceReport,
    VerifyReport,
)

SETTINGS = Settings(("int8",), "default", 4, 40, 25.0, "int8", ())


def report(precision: str, snr_db: float, size: int, failures: tuple[str, ...] = ()) -> VerifyReport:
    outputs = (TensorDifference("y", snr_db, 1.0, 0.0, 1.0), TensorDifference("z", snr_db + 9.0, 1.0, 0.0, 1.0))
    same = GraphReport("dit", "portable", precision, 1, 1.0, (), "reference", outputs)
    lower = TensorDifference("y", snr_db - 5.0, 1.0, 0.0, 1.0)
    flavour = GraphReport("dit", "ort", precision, 1, 1.0, (), "portable", (lower,))
    speech = SpeechReport(1.0, 25, "stop", -20.0, 0.5, 0.0, silent=False, words=WordErrors("a", 1, 4))
    beside = SpeechDifference(
        True, None, 40, 0.975, 40.0, 30.0, 0.5, 0.7, 1.0, -0.1, 3.2, 0.99, 0.6, 0.0, 0.0, 0.0
    )  # fmt: skip
    said = UtteranceReport("A.", "", 0, speech, speech, beside)
    sizes = (GraphSize("dit", size, 1_000_000),)
    return VerifyReport("b", "a", (precision,), (same, flavour), sizes, (said,), beside, (), failures, ())


@pytest.fixture
def result() -> Result:
    return Result(
        "toy",
        "",
        {"fp32": report("fp32", 200.0, 1_000_000), "int8": report("int8", 31.25, 260_000, ("too coarse", "too dull"))},
        {"int8": Speed(123.4, 0.25, 0.5, 0.45, 0.6, 0.0), "fp32": Speed(60.0, 0.5, 1.0, 1.0, 1.0, 3.0)},
        {"dit": [f"/layers.{n}/MatMul (fp16)" for n in range(8)]},
        {"fp16": "no checkpoint"},
        "somebody",
    )


def test_a_row_has_size_quality_and_speed(result: Result) -> None:
    header, rows = summary(result)
    cells = dict(zip(header, rows[1], strict=True))
    assert (cells["MB"], cells["of FP32"], cells["worst SNR dB"]) == ("0.26", "0.26", "31.2")
    assert (cells["likeliest token"], cells["mel dB"], cells["words wrong"]) == ("97.5%", "0.50", "25%")
    assert (cells["tokens/s"], cells["RTF"], cells["time / FP32"]) == ("123", "0.250", "0.50 (0.45-0.60)")
    assert cells["gate"] == "failed"
    reference = dict(zip(header, rows[0], strict=True))
    assert (reference["worst SNR dB"], reference["tokens/s"], reference["gate"]) == ("equal", "60*", "reference")


def test_graphs_have_their_ratio_and_do_not_count_flavours_against_each_other(result: Result) -> None:
    assert graphs(result) == (["graph: SNR dB, size / FP32", "int8"], [["dit", "31.2, 0.26"]])


def test_the_page_names_what_failed_and_what_was_kept(result: Result, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- quality_table:begin -->\nold\n<!-- quality_table:end -->\nafter\n")
    replace_region(page, "quality_table", render(describe(()), [result], SETTINGS, 1, markdown=True))
    text = page.read_text()
    assert "old" not in text
    assert "* fp16: no checkpoint" in text
    assert "* int8 failed its gate: too coarse (and 1 more)" in text
    assert "* mixed, dit: 8 kept higher: /layers.0/MatMul (fp16)" in text
    assert "and 2 more" in text
    assert "int8 where it may be, at least 25 dB" in text


def test_a_voice_that_cannot_be_exported_is_told_not_thrown(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    voice = make("broken", tmp_path / "nothing", tmp_path / "work", SETTINGS)
    assert voice.bundles == {}
    assert "fp32" in voice.failures
