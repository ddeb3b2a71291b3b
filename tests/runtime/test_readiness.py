"""Whether a bundle is known to be good: from unverified to ready, and back when its files change; what people see."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from cli_stand_ins import GRAPH, ToneSynthesizer

from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import ConfigError
from voxedge.engines.gate import Gate
from voxedge.engines.manifest import FileRecord, ManifestDraft, dump_manifest, parse_manifest
from voxedge.engines.readiness import VERIFY_REPORT, Verdict, files_digest, readiness, record_verdict
from voxedge.runtime.cli.console import Console, GlobalOptions
from voxedge.runtime.cli.main import main
from voxedge.runtime.cli.synthesis import open_synthesizer
from voxedge.runtime.synthesizer import Synthesizer


def bundle_of(target: Path, precision: str, weights: bytes = b"weights", gate: Gate | None = None) -> Bundle:
    graph = dataclasses.replace(GRAPH, precision=precision)
    with BundleWriter(target, overwrite=True) as writer:
        writer.path(GRAPH.path).write_bytes(b"graph")
        writer.path(GRAPH.data).write_bytes(weights)
        return writer.commit(ManifestDraft("toy", {}, (graph,), gate=gate))


def verdict(bundle: Bundle, **changes: Any) -> Verdict:  # noqa: ANN401 - fields of several types
    return dataclasses.replace(Verdict(files_digest(bundle.manifest), True, "f" * 64), **changes)


def test_a_quantised_bundle_becomes_ready_and_is_not_after_its_files_change(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "voice", "int8")
    before = readiness(bundle)
    assert (before.state, before.warns) == ("unverified", True)
    assert f"voxedge verify {bundle.root} --reference" in before.reason
    record_verdict(bundle, verdict(bundle), {"figures": [1.5]})
    assert (readiness(bundle).state, readiness(bundle).warns) == ("ready", False)
    assert Bundle.open(bundle.root, verify_hashes=True) == bundle, "the report must not be one of the bundle's files"
    changed = bundle_of(tmp_path / "voice", "int8", b"WEIGHTS")
    record_verdict(changed, verdict(bundle), {})
    after = readiness(changed)
    assert (after.state, after.warns) == ("unverified", True)
    assert after.reason.startswith("its files have changed since it was verified")


def test_a_failure_is_named_and_counted(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "voice", "fp32")
    record_verdict(bundle, verdict(bundle, passed=False, failures=("graph dit: bad", "silent")), {})
    found = readiness(bundle)
    assert (found.state, found.reason, found.warns) == (
        "failed",
        "verification failed: graph dit: bad and 1 more",
        True,
    )


@pytest.mark.parametrize(
    ("precision", "reference", "state", "warns"),
    [
        ("fp32", "", "reference", False),
        ("fp16", "", "unverified", False),
        ("int4-weight", "", "unverified", True),
        ("fp16", "f" * 64, "ready", False),
    ],
)
def test_only_a_reference_makes_ready(tmp_path: Path, precision: str, reference: str, state: str, warns: bool) -> None:
    bundle = bundle_of(tmp_path / "voice", precision)
    record_verdict(bundle, verdict(bundle, reference=reference), {})
    found = readiness(bundle)
    assert (found.state, found.warns) == (state, warns)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"verdict": {"files": 1, "passed": true}}', "[" * 100_000])
def test_a_damaged_report_counts_as_none(tmp_path: Path, text: str) -> None:
    bundle = bundle_of(tmp_path / "voice", "int8")
    record_verdict(bundle, verdict(bundle), {})
    (bundle.root / VERIFY_REPORT).write_text(text)
    found = readiness(bundle)
    assert found.state == "unverified"
    assert "is damaged" in found.reason


def test_a_report_that_leads_out_of_the_bundle_is_not_read(tmp_path: Path) -> None:
    bundle, other = bundle_of(tmp_path / "voice", "int8"), bundle_of(tmp_path / "other", "int8")
    outside = record_verdict(other, verdict(bundle), {})
    (bundle.root / VERIFY_REPORT).parent.mkdir()
    (bundle.root / VERIFY_REPORT).symlink_to(outside)
    assert readiness(bundle).state == "unverified"


def test_a_bundle_is_never_written_with_a_report(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "voice") as writer, pytest.raises(ConfigError, match="voxedge writes itself"):
        writer.path(VERIFY_REPORT)


def test_equal_files_have_equal_digests_and_others_have_others(tmp_path: Path) -> None:
    manifest = bundle_of(tmp_path / "voice", "int8").manifest
    files = dict(manifest.files)
    again = dataclasses.replace(manifest, files=dict(reversed(files.items())))
    assert files_digest(again) == files_digest(manifest)
    for record in (FileRecord("0" * 64, files[GRAPH.data].size), FileRecord(files[GRAPH.data].sha256, 1)):
        other = dataclasses.replace(manifest, files={**files, GRAPH.data: record})
        assert files_digest(other) != files_digest(manifest)


def test_limits_of_its_own_stand_in_the_manifest(tmp_path: Path) -> None:
    gate = Gate(min_graph_snr_db=25.0)
    data = dump_manifest(bundle_of(tmp_path / "voice", "mixed", gate=gate).manifest)
    assert data["gate"] == {"min_graph_snr_db": 25.0}
    assert parse_manifest(data).gate == gate
    assert gate.over(Gate(20.0, 19.0)) == Gate(25.0, 19.0)
    with pytest.raises(ConfigError, match=r"share of 0 \.\. 1, found 1\.5"):
        Gate(min_token_agreement=1.5)


def test_people_are_told_once_and_info_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundle_of(tmp_path / "voice", "int8-weight")
    monkeypatch.setattr(Synthesizer, "from_pretrained", lambda path, **options: ToneSynthesizer(bundle))
    given = {"backend": "cpu", "memory": "auto", "threads": None, "no_session_cache": True, "codec": None}
    arguments = argparse.Namespace(**given)
    open_synthesizer(bundle.root, arguments, Console(GlobalOptions()))
    assert capsys.readouterr().err.count("it was not verified") == 1
    assert main(["info", str(bundle.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["state"] == "unverified"
    record_verdict(bundle, verdict(bundle), {})
    open_synthesizer(bundle.root, arguments, Console(GlobalOptions()))
    assert capsys.readouterr().err == ""
    assert main(["info", str(bundle.root)]) == 0
    assert "quality: ready; verified beside its FP32 reference" in capsys.readouterr().out
