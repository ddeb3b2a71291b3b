"""Constants and weights of saved graphs: what lies where, and that a graph may be saved again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from voxedge.calibration.graph_files import INLINE_BYTES, read_model, save_models, stored_sources
from voxedge.engines.errors import BundleError
from voxedge.engines.lazy import InMemory

SIZE = 400  # int32 and int64 numbers are more than may be inside the graph
GRAPH = f"""<ir_version: 9, opset_import: ["" : 20]>
agraph (float[{SIZE}] x, float[{SIZE}] w, int32[{SIZE}] a, int32[{SIZE}] b, int64[2] c)
        => (float[2] y, int32[{SIZE}] z) {{
   xw = Mul(x, w)
   y = Gather(xw, c)
   z = Add(a, b)
}}"""
W = np.linspace(0.0, 1.0, SIZE, dtype=np.float32)


def model(start: int) -> ir.Model:
    """A graph whose weight is `w`; `a` and `b` are the same numbers from `start` on."""
    parsed = ir.from_onnx_text(GRAPH)
    numbers = np.arange(start, start + SIZE, dtype=np.int32)
    for name, array in (("w", None), ("a", numbers), ("b", numbers.copy()), ("c", np.array([2, 3]))):
        value = next(value for value in parsed.graph.inputs if value.name == name)
        parsed.graph.inputs.remove(value)
        value.const_value = None if array is None else ir.tensor(array, name=name)
        parsed.graph.initializers[name] = value
    return parsed


def save(models: dict[str, ir.Model], folder: Path) -> dict[str, Path]:
    folder.mkdir()
    paths = {name: folder / f"{name}.onnx" for name in models}
    save_models(
        {paths[name]: each for name, each in models.items()}, {"w": InMemory("w", W)}, folder / "w.data", lambda n: None
    )
    return paths


def check(path: Path, start: int) -> None:
    stored = onnx.load(str(path), load_external_data=False)
    inside = {item.name for item in stored.graph.initializer if not item.external_data}
    assert inside == {"c"}
    assert len(stored.graph.initializer) == 3  # w, c, and one for a and b
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    y, z = session.run(None, {"x": np.ones(SIZE, np.float32)})
    np.testing.assert_array_equal(y, W[2:4])
    np.testing.assert_array_equal(z, 2 * np.arange(start, start + SIZE))


def test_large_constants_of_flavours_lie_beside_the_weights(tmp_path: Path) -> None:
    """Both flavours call them `a` and mean other numbers."""
    assert SIZE * 4 > INLINE_BYTES
    models = {"portable": model(0), "ort": model(7)}
    for name in ("first", "again"):
        paths = save(models, tmp_path / name)
        check(paths["portable"], 0)
        check(paths["ort"], 7)


def test_a_graph_that_was_read_is_saved_with_its_constants(tmp_path: Path) -> None:
    paths = save({"portable": model(0), "ort": model(7)}, tmp_path / "first")
    read = {name: read_model(path) for name, path in paths.items()}
    sources = stored_sources(read.values(), tmp_path / "first" / "w.data")
    (tmp_path / "second").mkdir()
    moved = {name: tmp_path / "second" / path.name for name, path in paths.items()}
    save_models(
        {moved[name]: each for name, each in read.items()}, sources, tmp_path / "second" / "w.data", lambda n: None
    )
    check(moved["portable"], 0)
    check(moved["ort"], 7)


@pytest.mark.parametrize("dtype", ["int8", "int32"])  # a matrix, and a table of embeddings
def test_rounded_weights_are_no_source(dtype: str, tmp_path: Path) -> None:
    parsed = ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["" : 20]> agraph ({dtype}[2000] w) => ({dtype}[2000] y) {{ y = Identity(w) }}'
    )
    parsed.graph.initializers["w"] = parsed.graph.inputs.pop()
    sources = {"w": InMemory("w", np.ones(2000, dtype))}
    save_models({tmp_path / "g.onnx": parsed}, sources, tmp_path / "w.data", lambda count: None)
    with pytest.raises(BundleError, match="expected the FP32 or FP16 tensor w"):
        stored_sources([read_model(tmp_path / "g.onnx")], tmp_path / "w.data")
