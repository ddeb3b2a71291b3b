"""An ONNX graph in TensorRT's hands: parsed, compared with the manifest, bounded by profiles.

In: a `GraphSpec` and TensorRT's objects. Out: a parsed network, or a `BuildError` with every refused node by name.
Does not build.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voxedge.engines.errors import BuildError
from voxedge.engines.manifest import GraphSpec, TensorSpec
from voxedge.engines.trt.api import Library

TRT_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int32": "INT32",
    "int64": "INT64",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}
"""TensorRT's name of each dtype of a manifest."""
_MAX_LISTED = 10


def parse_graph(library: Library, network: Any, logger: Any, graph: GraphSpec, path: Path) -> Any:  # noqa: ANN401
    """Parse an ONNX file and the weights beside it into `network`.

    Returns:
        TensorRT's parser; it owns the weights and must outlive the build.

    Raises:
        BuildError: The parser refused it; the message lists the nodes.
    """
    trt = library.module
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(path)):
        return parser
    problems = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    listed = "".join(f"\n  {problem}" for problem in problems[:_MAX_LISTED])
    more = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
    raise BuildError(f"graph {graph.name}: {library.flavour} {library.version} cannot parse {path}:{listed}{more}")


def check_network(network: Any, graph: GraphSpec) -> None:  # noqa: ANN401
    """Compare a parsed network's inputs and outputs with the manifest.

    Raises:
        BuildError: A name, dtype or fixed size differs.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _check_side(graph, "inputs", graph.inputs, inputs)
    _check_side(graph, "outputs", graph.outputs, outputs)
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise BuildError(
                f"graph {graph.name}: the values of the input {tensor.name} decide a shape; lengths are decided on the "
                "host, so export the graph with a symbolic dimension in its place"
            )


def add_profiles(builder: Any, builder_config: Any, graph: GraphSpec) -> None:  # noqa: ANN401
    """Add one optimisation profile for each of the manifest's, in their order.

    Raises:
        BuildError: TensorRT refused a range.
    """
    dynamic = [tensor for tensor in graph.inputs if any(isinstance(size, str) for size in tensor.shape)]
    if not dynamic:
        return
    for name, dims in graph.profiles.items():
        profile = builder.create_optimization_profile()
        bounds = [{dim: getattr(sizes, bound) for dim, sizes in dims.items()} for bound in ("min", "opt", "max")]
        for tensor in dynamic:
            profile.set_shape(tensor.name, *(tensor.sizes(sizes) for sizes in bounds))
        if builder_config.add_optimization_profile(profile) < 0:
            raise BuildError(f"graph {graph.name}: the ranges of the profile {name} were refused: {dict(dims)}")


def _describe(error: Any) -> str:  # noqa: ANN401
    name, operator = error.node_name(), error.node_operator()
    place = f"{name or 'a node without a name'} ({operator})" if operator else "the file"
    return f"{place}: {error.desc()}"


def _check_side(graph: GraphSpec, side: str, expected: tuple[TensorSpec, ...], found: list[Any]) -> None:
    names = [tensor.name for tensor in found]
    if sorted(names) != sorted(tensor.name for tensor in expected):
        raise BuildError(
            f"graph {graph.name}: expected the {side} {[tensor.name for tensor in expected]}, found {names}; "
            "the manifest and the graph disagree, export again"
        )
    for tensor in expected:
        parsed = found[names.index(tensor.name)]
        fixed = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
        shape = tuple(parsed.shape)
        fits = len(shape) == len(fixed) and all(a == b or -1 in (a, b) for a, b in zip(shape, fixed, strict=True))
        if not fits or parsed.dtype.name != TRT_DTYPES[tensor.dtype]:
            raise BuildError(
                f"graph {graph.name}: expected {tensor.name} as {TRT_DTYPES[tensor.dtype]} {fixed}, "
                f"found {parsed.dtype.name} {shape}; the manifest and the graph disagree, export again"
            )
