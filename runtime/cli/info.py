"""`voxedge info`: what a bundle, a graph of one, an engine or an audio file is.

In: a folder or a file. Out: a table for people or JSON. Loads no graph; reads whole files only with --hashes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.bundle import ENGINES_FOLDER, Bundle
from voxedge.engines.errors import InputError, MissingResourceError
from voxedge.engines.files import format_bytes
from voxedge.engines.manifest import MANIFEST_NAME, GraphSpec, TensorSpec
from voxedge.engines.readiness import readiness
from voxedge.engines.records import to_dict
from voxedge.engines.stamps import read_stamp
from voxedge.runtime.cli.common import Verbs
from voxedge.runtime.cli.console import Console, table

if TYPE_CHECKING:
    from voxedge.engines.trt.layers import Layer

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
ENGINE_SUFFIXES = (".engine",)


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("info", help="what a bundle, graph, engine or audio file is")
    parser.add_argument("path", type=Path, metavar="PATH", help="a bundle, or one of its graphs or engines, or audio")
    parser.add_argument("--hashes", action="store_true", help="read every file of the bundle and compare its hash")
    parser.add_argument("--layers", action="store_true", help="open an engine and list its layers; needs its device")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Describe the path."""
    path: Path = arguments.path
    if not path.exists():
        raise MissingResourceError(f"expected a bundle or a file at {path}, found nothing")
    if path.is_dir() or path.name == MANIFEST_NAME:
        folder = path if path.is_dir() else path.parent
        data, text = describe_bundle(Bundle.open(folder, verify_hashes=arguments.hashes))
    elif path.suffix == ".onnx":
        data, text = describe_graph(path)
    elif path.suffix in ENGINE_SUFFIXES:
        data, text = describe_engine(path, arguments.layers)
    elif path.suffix.lower() in AUDIO_SUFFIXES:
        data, text = describe_audio(path)
    else:
        raise InputError(f"expected a bundle's folder, .onnx, .engine, .wav, .flac or .ogg, found {path}")
    console.result(data, text)
    return 0


def describe_bundle(bundle: Bundle) -> tuple[dict[str, Any], str]:
    """JSON and text of a bundle."""
    from voxedge.engines.session_cache import SessionCache

    manifest = bundle.manifest
    engines = sorted(path for path in bundle.path(ENGINES_FOLDER).rglob("*") if path.suffix in ENGINE_SUFFIXES)
    total = sum(record.size for record in manifest.files.values())
    ready, prepared = readiness(bundle), SessionCache().prepared(bundle)
    data = {
        "bundle": str(bundle.root),
        "system": manifest.system,
        "created_by": manifest.created_by,
        "note": manifest.note,
        "quality": {"state": ready.state, "reason": ready.reason},
        "settings": dict(manifest.settings),
        "bytes": total,
        "graphs": [to_dict(graph) for graph in manifest.graphs],
        "engines": [str(path.relative_to(bundle.root)) for path in engines],
        "prepared": prepared,
    }
    lines = [
        f"{bundle.root}",
        f"{manifest.system}, made by {manifest.created_by or 'an unnamed program'}, "
        f"{len(manifest.files)} files, {format_bytes(total)}",
        *([f"note: {manifest.note}"] if manifest.note else []),
        f"quality: {ready.state}; {ready.reason}",
        "",
        _graph_table(bundle),
        "",
        *_settings(manifest.settings),
        f"engines: {', '.join(str(path.relative_to(bundle.root)) for path in engines) or 'none built'}",
        *([f"prepared for this processor: {', '.join(prepared)}"] if prepared else []),
    ]
    return data, "\n".join(lines)


def _graph_table(bundle: Bundle) -> str:
    header = ("graph", "flavour", "precision", "opset", "ONNX Runtime", "weights")
    rows = [
        (
            graph.name,
            graph.flavour,
            graph.precision,
            str(graph.opset),
            f">= {graph.min_onnxruntime}",
            format_bytes(bundle.manifest.files[graph.data].size),
        )
        for graph in bundle.manifest.graphs
    ]
    return table(rows, header)


def _settings(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Scalars of the settings, nested names joined by dots; long lists are left to --json."""
    lines: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            lines += _settings(value, f"{prefix}{name}.")
        elif not isinstance(value, (list, tuple)):
            lines.append(f"{prefix}{name}: {value!r}" if isinstance(value, str) else f"{prefix}{name}: {value}")
    return lines


def describe_graph(path: Path) -> tuple[dict[str, Any], str]:
    """JSON and text of one graph, from the manifest of the bundle that it belongs to.

    Raises:
        InputError: The file belongs to no bundle.
    """
    real = path.resolve()
    for folder in real.parents:
        if (folder / MANIFEST_NAME).is_file():
            bundle = Bundle.open(folder)
            for graph in bundle.manifest.graphs:
                if folder / graph.path == real:
                    return to_dict(graph), _graph_text(graph)
    raise InputError(f"{path}: expected a graph that a bundle's {MANIFEST_NAME} names, found none; give the bundle")


def _graph_text(graph: GraphSpec) -> str:
    rows = [("input", *_tensor(tensor)) for tensor in graph.inputs]
    rows += [("output", *_tensor(tensor)) for tensor in graph.outputs]
    ranges = [
        (profile, name, f"{dim.min} .. {dim.opt} .. {dim.max}")
        for profile, dims in graph.profiles.items()
        for name, dim in dims.items()
    ]
    head = f"{graph.name} ({graph.flavour}), {graph.precision}, opset {graph.opset}, weights in {graph.data}"
    return f"{head}\n\n{table(rows)}\n\n{table(ranges, ('profile', 'dimension', 'min .. opt .. max'))}".rstrip()


def _tensor(tensor: TensorSpec) -> tuple[str, str, str]:
    return tensor.name, tensor.dtype, f"[{', '.join(map(str, tensor.shape))}]"


def describe_engine(path: Path, layers: bool = False) -> tuple[dict[str, Any], str]:
    """JSON and text of an engine's stamp: what it was built from, with and for.

    Args:
        path: The engine file.
        layers: Also open it and list its layers.

    Raises:
        MissingResourceError: There is no stamp beside the engine.
        EngineMismatchError: Layers were asked for, and the engine is not for this machine.
    """
    record = read_stamp(path)
    if record is None:
        raise MissingResourceError(f"{path} has no stamp beside it; build it again with `voxedge build BUNDLE --force`")
    stamp = record.stamp
    devices = ", ".join(f"SM{capability}" for capability in stamp.compute_capabilities)
    lines = [
        f"{path}: {format_bytes(record.engine.size)}, {stamp.precision}",
        f"built with {stamp.flavour} {stamp.version} for {devices}, {stamp.os} {stamp.arch}"
        + (f", Jetson Linux {stamp.l4t}" if stamp.l4t else ""),
        f"from a graph of sha256 {stamp.graph_sha256}",
    ]
    data = to_dict(record)
    if layers:
        found = read_engine_layers(path)
        data["layers"] = [to_dict(layer) for layer in found]
        rows = [(layer.kind, layer.name, ", ".join(layer.inputs), ", ".join(layer.outputs)) for layer in found]
        lines += ["", table(rows, ("layer", "made of", "takes", "gives"))]
    return data, "\n".join(lines)


def read_engine_layers(path: Path) -> list[Layer]:
    """The layers of an engine; its libraries are loaded for nothing else."""
    from voxedge.engines.trt.layers import read_layers

    return read_layers(path)


def describe_audio(path: Path) -> tuple[dict[str, Any], str]:
    """JSON and text of an audio file.

    Raises:
        InputError: It is no audio that libsndfile reads.
    """
    import soundfile  # loads numpy, which the other kinds do without

    try:
        found = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise InputError(f"{path}: expected an audio file, found: {error}") from error
    data = {
        "file": str(path),
        "sample_rate": found.samplerate,
        "channels": found.channels,
        "seconds": found.duration,
        "format": found.subtype,
    }
    return data, (
        f"{path}: {found.duration:.2f} s, {found.samplerate} Hz, {found.channels} channel(s), {found.subtype_info}"
    )
