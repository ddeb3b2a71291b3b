"""What TensorRT made of a graph: the layers of an engine, and the number formats between them.

In: an engine file that fits this machine. Out: `Layer`s, in their order. This is TensorRT's own EngineInspector, which
`polygraphy inspect` shows too. Opens the engine, so it needs the device; runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxedge.engines.errors import EngineMismatchError, InferenceError, MissingResourceError
from voxedge.engines.stamps import EngineStamp, compare, read_stamp
from voxedge.engines.trt.api import load
from voxedge.engines.trt.cuda import open_cuda
from voxedge.engines.trt.host import BuildHost, find_host
from voxedge.engines.trt.session import Session


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine."""

    name: str
    """As the builder named it, usually from the nodes that it fused."""
    kind: str
    """Its type; empty where the engine was built without details."""
    inputs: tuple[str, ...] = ()
    """Format and number type of each input, such as `Int8 NC/32HW32`."""
    outputs: tuple[str, ...] = ()
    """The same of each output."""
    tactic: str = ""
    """Name of the kernel, where there is one."""


def read_layers(path: Path) -> list[Layer]:
    """Open an engine and list its layers.

    Raises:
        MissingResourceError: There is no stamp beside it.
        EngineMismatchError: It was built for another device or version.
        BackendUnavailableError: The library or the device is not there.
        InferenceError: TensorRT gives no readable answer.
    """
    record = read_stamp(path)
    if record is None:
        raise MissingResourceError(f"{path} has no stamp beside it; build it again with `voxedge build BUNDLE --force`")
    library, cuda = load(record.stamp.flavour), open_cuda()
    differences = compare(record.stamp, _here(record.stamp, find_host(library)))
    if differences:
        raise EngineMismatchError(f"{path} cannot be opened here: {'; '.join(differences)}")
    session = Session(library, cuda)
    try:
        engine = session.open(path)
        inspector = engine.create_engine_inspector()
        return parse_layers(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))
    finally:
        session.close()


def _here(stamp: EngineStamp, host: BuildHost) -> EngineStamp:
    """What the stamp would be if the same graph had been built here."""
    return dataclasses.replace(
        stamp,
        version=host.library.version,
        compute_capabilities=host.compute_capabilities,
        os=host.system,
        arch=host.arch,
        l4t=host.l4t,
        options={},
    )


def parse_layers(text: str) -> list[Layer]:
    """Layers from the inspector's JSON: objects with details, or bare names.

    Raises:
        InferenceError: It is no such JSON.
    """
    try:
        layers = json.loads(text)["Layers"]
        return [_layer(item) for item in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InferenceError(f"expected layers as JSON from TensorRT's inspector, found {text[:200]!r}") from error


def _layer(item: Any) -> Layer:  # noqa: ANN401 - decoded JSON
    if isinstance(item, str):
        return Layer(item, "")
    return Layer(
        name=str(item["Name"]),
        kind=str(item.get("LayerType", "")),
        inputs=tuple(map(_format, item.get("Inputs", ()))),
        outputs=tuple(map(_format, item.get("Outputs", ()))),
        tactic=str(item.get("TacticName", "")),
    )


def _format(tensor: Mapping[str, Any]) -> str:
    return str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "unknown")


def count_by_type(layers: Iterable[Layer]) -> dict[str, int]:
    """How many layers there are of each kind and number type of their inputs; INT8 that was not fused shows as such.

    Example:
        >>> count_by_type([Layer("a", "gemm", ("Int8",)), Layer("b", "gemm", ("Int8",)), Layer("c", "", ())])
        {'gemm Int8': 2, 'unknown': 1}
    """
    names = (f"{layer.kind or 'unknown'} {' + '.join(dict.fromkeys(layer.inputs))}".strip() for layer in layers)
    return dict(Counter(names).most_common())
