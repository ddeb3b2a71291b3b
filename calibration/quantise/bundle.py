"""Quantise a bundle: an FP32 or FP16 bundle becomes a smaller one beside it.

In: the folder of a bundle, options, statistics where the options need them. Out: a new bundle, complete or not at all.
One graph is in work at a time and weights are streamed, so the memory needed does not grow with the model.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from voxedge.calibration.graph_files import read_model, save_models, stored_sources
from voxedge.calibration.lint import require_portable
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.graph import EditedGraph, opset_of
from voxedge.calibration.quantise.plan import PrecisionMap, WeightedNode, plan_layers
from voxedge.calibration.quantise.weight_only import layer_spec, store_weights
from voxedge.calibration.statistics import Statistics
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import ConfigError, InputError
from voxedge.engines.manifest import Flavour, GraphSpec, LayerSpec, Manifest, ManifestDraft

ProgressCallback = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done and how much there is, in bytes."""


def quantise_bundle(
    source: Path,
    output: Path,
    config: QuantiseConfig,
    statistics: Statistics | None = None,
    on_progress: ProgressCallback | None = None,
) -> Bundle:
    """Write a quantised copy of a bundle.

    Args:
        source: Folder of an FP32 or FP16 bundle; activations keep its type.
        output: Folder of the new bundle.
        config: Options.
        statistics: Of the activations of the source's FP32 graphs, where the options need them.
        on_progress: Told about every block of weights read.

    Returns:
        The new bundle; `GraphSpec.layers` says what became of every layer.

    Raises:
        BundleError: The source is damaged.
        InputError: The source is quantised already, or the statistics are of another bundle.
        ConfigError: A rule matches nothing or cannot be followed, or the output is the source.
        ExportError: The output exists, or the disk is full.

    Example:
        >>> quantise_bundle(Path("voice"), Path("voice-int4"), QuantiseConfig("int4-weight"))  # doctest: +SKIP
    """
    report = on_progress or (lambda step, done, total: None)
    bundle = Bundle.open(source, verify_hashes=True)
    _check_source(bundle, output)
    if statistics is not None:
        statistics.check(bundle.manifest)
    plans = plan_layers(layers_of(bundle), config.default_layer, config.rules)
    needed = sum(bundle.manifest.files[graph.data].size for graph in bundle.manifest.graphs)
    with BundleWriter(output, config.overwrite, needed) as writer:
        specs: list[GraphSpec] = []
        for name in dict.fromkeys(graph.name for graph in bundle.manifest.graphs):
            specs += _write_graph(bundle, writer, name, plans[name], config, statistics, report)
        kept = {path for graph in bundle.manifest.graphs for path in (graph.path, graph.data)}
        for relative in bundle.manifest.files:
            if relative not in kept:
                shutil.copyfile(bundle.path(relative), writer.path(relative))
        return writer.commit(_draft(bundle.manifest, tuple(specs)))


def layers_of(bundle: Bundle) -> dict[str, tuple[WeightedNode, ...]]:
    """All nodes with weights of a bundle, by graph; what rules can name."""
    names = dict.fromkeys(graph.name for graph in bundle.manifest.graphs)
    return {name: _open(bundle, name).weighted_nodes() for name in names}


def quantise_graph(
    graph: EditedGraph, layers: PrecisionMap, config: QuantiseConfig, statistics: Statistics | None
) -> dict[str, LayerSpec]:
    """Rewrite one graph in place.

    Returns:
        What became of every layer, by node path.
    """
    specs = {node.path: layer_spec(node, layers[node.path], config) for node in graph.weighted_nodes()}
    unsupported = [path for path, spec in specs.items() if spec.precision == "int8"]
    if unsupported:
        raise ConfigError(f"{graph.name}: INT8 activations are not there yet, found {unsupported[0]}")
    store_weights(graph, specs)
    return specs


def _open(bundle: Bundle, name: str) -> EditedGraph:
    specs = [graph for graph in bundle.manifest.graphs if graph.name == name]
    models = {spec.flavour: read_model(bundle.graph_path(spec)) for spec in specs}
    return EditedGraph(name, models, stored_sources(models.values(), bundle.data_path(specs[0])))


def _write_graph(
    bundle: Bundle,
    writer: BundleWriter,
    name: str,
    layers: PrecisionMap,
    config: QuantiseConfig,
    statistics: Statistics | None,
    report: ProgressCallback,
) -> list[GraphSpec]:
    graph = _open(bundle, name)
    paths = {flavour: {node.name for node in model.graph} for flavour, model in graph.models.items()}
    specs = [spec for spec in bundle.manifest.graphs if spec.name == name]
    formats = quantise_graph(graph, layers, config, statistics)
    done, total = 0, bundle.manifest.files[specs[0].data].size

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(name, done, max(total, done))

    report(name, 0, total)
    targets = {writer.path(spec.path): graph.models[spec.flavour] for spec in specs}
    save_models(targets, graph.sources, writer.path(specs[0].data), progress)
    written = [rounded_spec(spec, graph, formats, paths, config) for spec in specs]
    for spec in written:
        if spec.flavour == "portable":
            require_portable(writer.path(spec.path), spec)
    return written


def rounded_spec(
    spec: GraphSpec,
    graph: EditedGraph,
    formats: Mapping[str, LayerSpec],
    paths: Mapping[Flavour, set[str | None]],
    config: QuantiseConfig,
) -> GraphSpec:
    """The manifest's entry of one flavour whose graph was rewritten.

    Args:
        spec: The entry before.
        graph: All flavours, rewritten.
        formats: What became of every layer.
        paths: Nodes that each flavour had before.
        config: Options.
    """
    own = {path: form for path, form in formats.items() if path in paths[spec.flavour]}
    touched = any(form.precision != spec.precision for form in own.values())
    return dataclasses.replace(
        spec,
        precision=config.precision if touched else spec.precision,
        opset=opset_of(graph.models[spec.flavour]),
        layers=own,
    )


def _draft(manifest: Manifest, graphs: tuple[GraphSpec, ...]) -> ManifestDraft:
    return ManifestDraft(
        system=manifest.system,
        settings=manifest.settings,
        graphs=graphs,
        source=manifest.source,
        created_by=f"voxedge {version('voxedge')}",
        note=manifest.note,
    )


def _check_source(bundle: Bundle, output: Path) -> None:
    wrong = sorted({graph.precision for graph in bundle.manifest.graphs} - {"fp32", "fp16"})
    if wrong:
        raise InputError(
            f"{bundle.root}: expected an FP32 or FP16 bundle to quantise, found {', '.join(wrong)}; "
            "give the bundle that was exported with --precision fp32"
        )
    if output.resolve() == bundle.root:
        raise ConfigError(f"expected another folder for the result, found the source {output}")
