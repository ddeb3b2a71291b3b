"""What is read off `/proc/cpuinfo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from voxedge.engines.manifest import GraphSpec, LayerSpec
from voxedge.engines.ort import graph_options
from voxedge.engines.processor import int8_products_saturate, processor_identity

SPEC = GraphSpec("toy", "ort", "toy.onnx", "toy.data", "int8", 20, (), (), {"any": {}})


def test_processors_differ_by_model_and_instruction_sets(tmp_path: Path) -> None:
    def identity(text: str) -> str:
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc" / "cpuinfo").write_text(text)
        return processor_identity(tmp_path)

    amd = "processor : 0\nmodel name : AMD EPYC\nflags : sse avx2 avx512f\n"
    assert identity(amd) == identity(amd + amd.replace("0", "1"))  # every core is listed
    assert identity(amd) == identity(amd.replace("sse avx2", "avx2 sse"))
    others = [amd.replace(" avx512f", ""), amd.replace("EPYC", "Ryzen"), "CPU part : 0xd42\nFeatures : asimd\n", ""]
    assert len({identity(text) for text in (amd, *others)}) == 5


@pytest.mark.parametrize(
    ("machine", "flags", "saturate"),
    [
        ("x86_64", "sse avx2", True),
        ("AMD64", "sse avx512f avx512_bf16", True),
        ("x86_64", "avx2 avx_vnni", False),
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", None, True),
        ("aarch64", None, False),
    ],
)
def test_products_saturate_on_x86_without_vnni(
    machine: str, flags: str | None, saturate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert int8_products_saturate(tmp_path) is saturate


def test_only_graphs_that_compute_with_int8_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxedge.engines.ort.int8_products_saturate", lambda: True)
    floats = dataclasses.replace(SPEC, layers={"/a/MatMul": LayerSpec("int8-weight")})  # faster as floats on this CPU
    mixed = dataclasses.replace(SPEC, precision="mixed", layers={**floats.layers, "/b/MatMul": LayerSpec("int8")})
    told = ["session.x64quantprecision" in graph_options(spec) for spec in (SPEC, floats, mixed)]
    assert told == [True, False, True]
    for spec, device in ((SPEC, "cuda"), (dataclasses.replace(SPEC, weight_uses=12), "cpu")):
        assert "session.x64quantprecision" not in graph_options(spec, device)  # type: ignore[arg-type]
    frame = dataclasses.replace(SPEC, weight_uses=12)
    assert graph_options(frame)["session.disable_quant_qdq"] == "1"  # floats, made once
    monkeypatch.setattr("voxedge.engines.ort.int8_products_saturate", lambda: False)
    for spec in (SPEC, frame):
        assert not {"session.x64quantprecision", "session.disable_quant_qdq"} & set(graph_options(spec))


def test_weights_that_several_nodes_read_are_made_floats_once() -> None:
    """Where the graph has no INT8 products, whose integers would be lost with it."""
    shared = dataclasses.replace(SPEC, precision="int4-weight", weight_uses=12)
    told = ["session.disable_quant_qdq" in graph_options(spec) for spec in (shared, SPEC)]
    mixed = dataclasses.replace(shared, layers={"/a/MatMul": LayerSpec("int8")})
    assert told == [True, False]
    assert "session.disable_quant_qdq" not in graph_options(mixed)
