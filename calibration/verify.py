"""Does a bundle compute what it should? Files, speech, and every graph on real activations.

In: a bundle, and its FP32 reference where there is one. Out: a `VerifyReport` with every figure and every failure.
Runs on ONNX Runtime's CPU provider. Without a reference only what needs none is judged: that files are whole, outputs
finite, flavours equal and speech not silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from voxedge.calibration.gate import GATES, Gate, gate_of, graph_failures
from voxedge.calibration.graph_check import Progress, check_graphs
from voxedge.calibration.recording import Recording
from voxedge.calibration.report import VerifyReport
from voxedge.calibration.speaking import OBSERVED, Probe
from voxedge.calibration.speech_check import check_speech
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InputError
from voxedge.engines.manifest import Manifest

__all__ = ["GATES", "Gate", "Probe", "VerifyReport", "verify_bundle"]


def verify_bundle(
    path: Path,
    reference: Path | None = None,
    on_progress: Progress | None = None,
    probe: Probe | None = None,
    gates: Mapping[str, Gate] = GATES,
) -> VerifyReport:
    """Check a bundle's files, let it speak, run all its graphs, and compare it with its reference.

    Args:
        path: The bundle's folder.
        reference: Folder of the same checkpoint's FP32 bundle; None judges only what needs no reference.
        on_progress: Called with a step's name, how much of it is done and how much there is.
        probe: What is said; the default suits every voice.
        gates: Limits by precision.

    Raises:
        MissingResourceError: A folder or a file of a bundle does not exist.
        BundleError: A file is not what the manifest says, or the bundle is of an unknown system.
        ConfigError: There is no gate for one of the bundle's precisions.
        InputError: The reference is of another model, or cannot speak.
        BackendUnavailableError: ONNX Runtime is not installed, or too old for a graph.

    Example:
        >>> verify_bundle(Path("moe-tts-fp16"), Path("moe-tts-fp32")).passed  # doctest: +SKIP
        True
    """
    progress = on_progress or (lambda step, done, total: None)
    progress("checking files", 0, 1)
    bundle = _open(path)
    base = None if reference is None else _open(reference)
    precisions = tuple(sorted({graph.precision for graph in bundle.manifest.graphs}))
    gate = gate_of(precisions, gates)
    notes = [] if base is None else _check_same_model(bundle.manifest, base.manifest)
    recording = Recording()
    progress("speaking", 0, 1)
    speech = check_speech(bundle, base, probe or Probe(), gate, recording)
    graphs, failures = check_graphs(bundle, base, recording, progress)
    for graph in graphs:
        failures += graph_failures(graph, gates[graph.precision])
    return VerifyReport(
        bundle=str(bundle.root),
        reference=None if base is None else str(base.root),
        precisions=precisions,
        graphs=tuple(graphs),
        speech=speech.report,
        difference=speech.difference,
        failures=(*failures, *speech.failures),
        notes=(*notes, *speech.notes),
    )


def _open(path: Path) -> Bundle:
    """A bundle whose files all have their hashes, of a system that can be observed."""
    bundle = Bundle.open(path, verify_hashes=True)
    if bundle.manifest.system not in OBSERVED:
        raise BundleError(
            f"{path}: expected a system of {', '.join(OBSERVED)}, found {bundle.manifest.system!r}; "
            "a newer voxedge may know it: pip install -U voxedge"
        )
    return bundle


def _check_same_model(manifest: Manifest, reference: Manifest) -> list[str]:
    """Refuse a reference of another model; gives notes about what may be another one.

    Raises:
        InputError: The systems, their settings or their graphs differ.
    """
    keys = sorted({*manifest.settings, *reference.settings})
    wrong = [f"settings.{key}" for key in keys if manifest.settings.get(key) != reference.settings.get(key)]
    if manifest.system != reference.system:
        wrong.append("system")
    missing = {graph.name for graph in manifest.graphs} - {graph.name for graph in reference.graphs}
    wrong += [f"graph {name}" for name in sorted(missing)]
    if wrong:
        raise InputError(
            f"expected a reference of the same checkpoint and options, both differ in {', '.join(wrong)}; "
            "export it again with --precision fp32 and nothing else changed"
        )
    if dict(manifest.source) != dict(reference.source):
        return [
            "the reference was exported from other files than the bundle; figures mean little if the weights differ"
        ]
    return []
