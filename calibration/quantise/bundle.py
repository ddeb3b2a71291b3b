"""Quantise a bundle: an FP32 or FP16 bundle becomes a smaller one beside it.

In: the folder of a bundle, options, statistics where the options need them. Out: a new bundle, complete or not at all.
One graph is in work at a time and weights are streamed, so the memory needed does not grow with the model.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from voxedge.calibration.graph_files import read_model, save_models, stored_sources
from voxedge.calibration.lint import require_portable
from voxedge.calibration.quantise.awq import Balanced, balance
from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.calibration.quantise.cpu_form import CpuChoice, choose_cpu_form
from voxedge.calibration.quantise.graph import EditedGraph, opset_of
from voxedge.calibration.quantise.kv_cache import int8_caches, round_caches
from voxedge.calibration.quantise.notes import REPORT, GraphNotes, write_notes
from voxedge.calibration.quantise.plan import PrecisionMap, WeightedNode, plan_layers
from voxedge.calibration.quantise.smooth import Smoothing
from voxedge.calibration.quantise.static import PORTABLE, CpuForm, Form, form_of_layers, ort_form, quantise_activations
from voxedge.calibration.quantise.weight_only import layer_spec, store_weights
from voxedge.calibration.statistics import Statistics
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.errors import ConfigError, InputError
from voxedge.engines.gate import Gate
from voxedge.engines.manifest import Flavour, GraphSpec, LayerSpec, Manifest, ManifestDraft

_log = logging.getLogger(__name__)

ProgressCallback = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done and how much there is, in bytes."""


def quantise_bundle(
    source: Path,
    output: Path,
    config: QuantiseConfig,
    statistics: Statistics | None = None,
    on_progress: ProgressCallback | None = None,
    reports: Mapping[str, bytes] | None = None,
) -> Bundle:
    """Write a quantised copy of a bundle.

    Args:
        source: Folder of an FP32 or FP16 bundle; activations keep its type.
        output: Folder of the new bundle.
        config: Options.
        statistics: Of the activations of the source's FP32 graphs, where the options need them.
        on_progress: Told about every block of weights read.
        reports: Further files of the new bundle, by path.

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
        notes: list[GraphNotes] = []
        for name in dict.fromkeys(graph.name for graph in bundle.manifest.graphs):
            written, note = _write_graph(bundle, writer, name, plans[name], config, statistics, report)
            specs += written
            notes.append(note)
        write_notes(writer.path(REPORT), config, statistics, notes)
        for relative, content in (reports or {}).items():
            writer.path(relative).write_bytes(content)
        own = {REPORT, *(reports or {})}
        kept = {path for graph in bundle.manifest.graphs for path in (graph.path, graph.data)} | own
        for relative in bundle.manifest.files:
            if relative not in kept:
                shutil.copyfile(bundle.path(relative), writer.path(relative))
        return writer.commit(_draft(bundle.manifest, tuple(specs), config))


def layers_of(bundle: Bundle) -> dict[str, tuple[WeightedNode, ...]]:
    """All nodes with weights of a bundle, by graph; what rules can name."""
    names = dict.fromkeys(graph.name for graph in bundle.manifest.graphs)
    return {name: _open(bundle, name).weighted_nodes() for name in names}


def quantise_graph(
    graph: EditedGraph,
    layers: PrecisionMap,
    config: QuantiseConfig,
    statistics: Statistics | None,
    cpu_form: CpuForm = "integer",
) -> tuple[dict[str, LayerSpec], list[Smoothing | Balanced]]:
    """Rewrite one graph in place.

    Returns:
        What became of every layer, by node path, and of every activation that could be smoothed.

    Raises:
        InputError: There are layers at `int8`, and no statistics of what enters them.
    """
    specs = {node.path: layer_spec(node, layers[node.path], config) for node in graph.weighted_nodes()}
    smoothed: list[Smoothing | Balanced] = []
    if statistics is not None and config.awq:
        smoothed += balance(graph, specs, statistics)
    if has_int8(layers):
        if statistics is None:
            raise InputError(
                "expected statistics of the activations for int8, found none; run `voxedge calibrate BUNDLE -o FILE` "
                "and give the file with --statistics"
            )
        forms: dict[Flavour, Form] = {"portable": PORTABLE, "ort": ort_form(cpu_form)}
        smoothed += quantise_activations(graph, specs, statistics, config, forms)
    store_weights(graph, specs)
    if config.kv_cache != "float":
        round_caches(graph, statistics, config.kv_cache)
    return specs, smoothed


def has_int8(layers: PrecisionMap) -> bool:
    """Whether some layer of a graph has INT8 activations."""
    return "int8" in layers.values()


def _open(bundle: Bundle, name: str, add_ort: bool = False) -> EditedGraph:
    """All flavours of a graph, and one more where ONNX Runtime shall have its own."""
    specs = [graph for graph in bundle.manifest.graphs if graph.name == name]
    models = {spec.flavour: read_model(bundle.graph_path(spec)) for spec in specs}
    if add_ort:
        models["ort"] = read_model(bundle.graph_path(specs[0]))
    sources = stored_sources(models.values(), bundle.data_path(specs[0]))
    return EditedGraph(name, models, sources, specs[0].weight_uses)


def _write_graph(
    bundle: Bundle,
    writer: BundleWriter,
    name: str,
    layers: PrecisionMap,
    config: QuantiseConfig,
    statistics: Statistics | None,
    report: ProgressCallback,
) -> tuple[list[GraphSpec], GraphNotes]:
    specs = [spec for spec in bundle.manifest.graphs if spec.name == name]
    choice: CpuChoice | None = None
    # A decoder's `ort` flavour has a cache of another form, so a portable one that is alone stays alone.
    is_decoder = any(tensor.name == "logits_at" for tensor in specs[0].inputs)
    if statistics is not None and has_int8(layers) and len(specs) == 1 and not is_decoder:
        choice = _cpu_choice(bundle, specs[0], layers, config, statistics)
        specs.append(dataclasses.replace(specs[0], flavour="ort", path=f"graphs/{name}.ort.onnx"))
    graph = _open(bundle, name, choice is not None)
    paths = {flavour: {node.name for node in model.graph} for flavour, model in graph.models.items()}
    nodes = graph.weighted_nodes()
    form: CpuForm = choice.form if choice else ("float" if config.cpu_form == "float" else "integer")
    formats, smoothed = quantise_graph(graph, layers, config, statistics, form)
    done, total = 0, bundle.manifest.files[specs[0].data].size

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report(name, done, max(total, done))

    report(name, 0, total)
    targets = {writer.path(spec.path): graph.models[spec.flavour] for spec in specs}
    save_models(targets, graph.sources, writer.path(specs[0].data), progress)
    by_flavour: dict[Flavour, dict[str, LayerSpec]] = {"portable": formats, "ort": form_of_layers(formats, nodes, form)}
    written = [rounded_spec(spec, graph, by_flavour[spec.flavour], paths, config) for spec in specs]
    for spec in written:
        if spec.flavour == "portable":
            require_portable(writer.path(spec.path), spec)
    return written, GraphNotes(name, choice, tuple(smoothed))


def _cpu_choice(
    bundle: Bundle, spec: GraphSpec, layers: PrecisionMap, config: QuantiseConfig, statistics: Statistics
) -> CpuChoice:
    """How the CPU will compute a graph that exists once; says so where INT8 loses."""
    if config.cpu_form != "auto":
        return CpuChoice(config.cpu_form, measured=False)
    plain = dataclasses.replace(config, smooth=False, awq=False)  # the same work for the processor

    def write(folder: Path, form: CpuForm) -> Path:
        graph = _open(bundle, spec.name, add_ort=True)
        quantise_graph(graph, layers, plain, statistics, form)
        path = folder / "graph.onnx"
        save_models({path: graph.models["ort"]}, graph.sources, folder / "graph.data", lambda count: None)
        return path

    choice = choose_cpu_form(bundle, spec, statistics, write)
    _log.log(logging.WARNING if choice.form == "float" else logging.INFO, "%s", choice.sentence(spec.name))
    return choice


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
        int8_caches(spec) if config.kv_cache != "float" else spec,
        precision=config.precision if touched else spec.precision,
        opset=opset_of(graph.models[spec.flavour]),
        layers=own,
    )


def _draft(manifest: Manifest, graphs: tuple[GraphSpec, ...], config: QuantiseConfig) -> ManifestDraft:
    return ManifestDraft(
        system=manifest.system,
        settings=manifest.settings,
        graphs=graphs,
        source=manifest.source,
        created_by=f"voxedge {version('voxedge')}",
        note=manifest.note,
        gate=None if config.min_snr_db is None else Gate(min_graph_snr_db=config.min_snr_db),
        words=manifest.words,
        voices=manifest.voices,
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
