"""Layers of engines: what TensorRT's inspector says, on the doubles and in the forms that its versions give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cache_graphs import cache_spec, write_cache_bundle
from trt_double import VERSIONS, CudaDouble, device_of, install

from voxedge.engines.errors import EngineMismatchError, InferenceError, MissingResourceError
from voxedge.engines.trt.builder import build_bundle
from voxedge.engines.trt.config import BuildConfig
from voxedge.engines.trt.layers import Layer, count_by_type, parse_layers, read_layers
from voxedge.runtime.cli.info import describe_engine


@pytest.mark.parametrize("version", VERSIONS)
def test_layers_of_an_engine(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version, device_of(version))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = write_cache_bundle(tmp_path / "bundle", cache_spec())
    [record] = build_bundle(bundle, BuildConfig(target="rtx" if version.startswith("rtx") else "trt"))
    layers = read_layers(record.path)
    assert [layer.name for layer in layers] == ["/project/MatMul", "/cache/Concat", "/sum/ReduceSum"]
    assert count_by_type(layers)["MatMul Row major linear FP32"] == 1
    data, text = describe_engine(record.path, layers=True)
    assert data["layers"][0]["kind"] == "MatMul"
    assert "/cache/Concat" in text
    assert "layers" not in describe_engine(record.path)[0]
    other = "10.13" if version == "10.3" else "10.3"
    if not version.startswith("rtx"):
        install(monkeypatch, other, CudaDouble())
        with pytest.raises(EngineMismatchError, match="cannot be opened here: library version"):
            read_layers(record.path)
    with pytest.raises(MissingResourceError, match="no stamp"):
        read_layers(tmp_path / "nothing.engine")


def test_forms_of_the_answer() -> None:
    int8 = {
        "Name": "/layers.0/q_proj/MatMul + quantise",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Format/Datatype": "Int8 row major"}, {"Name": "w", "Datatype": "Int8"}, {}],
        "Outputs": [{"Name": "y", "Format/Datatype": "FP16 row major"}],
        "TacticName": "sm80_xmma_gemm_i8f16",
    }
    [layer, bare] = parse_layers(json.dumps({"Layers": [int8, "Reformatting CopyNode"]}))
    assert layer.inputs == ("Int8 row major", "Int8", "unknown")
    assert layer.tactic == "sm80_xmma_gemm_i8f16"
    assert bare == Layer("Reformatting CopyNode", "")
    assert count_by_type([layer, layer, bare]) == {"gemm Int8 row major + Int8 + unknown": 2, "unknown": 1}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": 3}', '{"Layers": [{"LayerType": "gemm"}]}', '{"Layers": [1]}']
)
def test_answers_that_are_none(text: str) -> None:
    with pytest.raises(InferenceError, match="expected layers as JSON"):
        parse_layers(text)
