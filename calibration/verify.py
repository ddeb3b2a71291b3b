"""Does a bundle compute what it should? Files, speech, and every graph on real activations.

In: a bundle, and its FP32 reference where there is one. Out: a `VerifyReport` with every figure and every failure.
Runs on ONNX Runtime's CPU provider. Without a reference only what needs none is judged: that files are whole, outputs
finite, flavours equal and speech not silent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from voxedge.calibration.backends import GraphRunner
from voxedge.calibration.gate import GATES, gate_of, graph_checks, graph_failures
from voxedge.calibration.graph_check import Progress, check_graphs
from voxedge.calibration.recogniser import Recogniser
from voxedge.calibration.recording import Recording
from voxedge.calibration.report import GraphSize, VerifyReport
from voxedge.calibration.speaking import OBSERVED, PROBES, Probe, probes_for
from voxedge.calibration.speech_check import Sounds, SpeechPlan, check_speech
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, ConfigError, InputError
from voxedge.engines.gate import Gate
from voxedge.engines.loader import Backend
from voxedge.engines.manifest import Manifest
from voxedge.engines.readiness import Verdict, files_digest, record_verdict

__all__ = [
    "GATES",
    "PROBES",
    "Gate",
    "Probe",
    "Verification",
    "VerifyConfig",
    "VerifyReport",
    "record",
    "verify",
    "verify_bundle",
]


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """What a bundle is asked, and what is asked of it."""

    probes: Sequence[Probe] | None = None
    """What is said, at least one; None for what suits the voice."""
    gates: Mapping[str, Gate] = field(default_factory=lambda: GATES)
    """Limits by precision; the manifest's own go before them."""
    recogniser: Recogniser | None = None
    """Who listens; None for nobody."""
    codec: Path | None = None
    """Bundle of the codec, for a system without one of its own; None for the one beside it."""
    backend: Backend = "cpu"
    """Where the graphs are run; the speech that they are recorded from is the CPU's."""


@dataclass(frozen=True, slots=True)
class Verification:
    """A report, and what it is about."""

    report: VerifyReport
    """Every figure."""
    bundle: Bundle
    """What was verified."""
    reference: Bundle | None
    """Beside what."""
    sounds: tuple[Sounds, ...]
    """To listen to."""


def verify_bundle(
    path: Path, reference: Path | None = None, on_progress: Progress | None = None, config: VerifyConfig | None = None
) -> VerifyReport:
    """Check a bundle's files, let it speak, run all its graphs, and compare it with its reference.

    Args:
        path: The bundle's folder.
        reference: Folder of the same checkpoint's FP32 bundle; None judges only what needs no reference.
        on_progress: Called with a step's name, how much of it is done and how much there is.
        config: What is said, limits, and who listens; the default suits every voice.

    Raises:
        MissingResourceError: A folder or a file of a bundle does not exist.
        BundleError: A file is not what the manifest says, or the bundle is of an unknown system.
        ConfigError: There is no gate for one of the bundle's precisions, or nothing to say.
        InputError: The reference is of another model, or cannot speak.
        BackendUnavailableError: ONNX Runtime is not installed, or too old for a graph; or the backend is not there.
        EngineMismatchError: TensorRT was asked for, and a graph has no engine that fits.

    Example:
        >>> verify_bundle(Path("moe-tts-fp16"), Path("moe-tts-fp32")).passed  # doctest: +SKIP
        True
    """
    return verify(path, reference, on_progress, config).report


def verify(
    path: Path, reference: Path | None = None, on_progress: Progress | None = None, config: VerifyConfig | None = None
) -> Verification:
    """The same, with the sounds; arguments and errors as for `verify_bundle`."""
    config, progress = config or VerifyConfig(), on_progress or (lambda step, done, total: None)
    progress("checking files", 0, 1)
    bundle = _open(path)
    base = None if reference is None else _open(reference)
    manifest = bundle.manifest
    probes = probes_for(manifest.words) if config.probes is None else config.probes
    if not probes:
        raise ConfigError("expected something to say, found no probe")
    precisions = tuple(sorted({graph.precision for graph in manifest.graphs}))
    own = manifest.gate or Gate()
    gate = own.over(gate_of(precisions, config.gates))
    notes = [] if base is None else _check_same_model(manifest, base.manifest)
    if config.backend != "cpu":
        GraphRunner(bundle, config.backend).close()  # what is missing is said before anything takes time
        notes.append(f"the graphs were run on {config.backend}, beside the CPU; the speech is the CPU's")
    recording = Recording()
    speech = check_speech(bundle, base, SpeechPlan(probes, gate, config.recogniser, config.codec), recording, progress)
    graphs, failures = check_graphs(bundle, base, recording, progress, config.backend)
    checks = [check for graph in graphs for check in graph_checks(graph, own.over(config.gates[graph.precision]))]
    checks += speech.checks
    for graph in graphs:
        failures += graph_failures(graph)
    report = VerifyReport(
        bundle=str(bundle.root),
        reference=None if base is None else str(base.root),
        precisions=precisions,
        graphs=tuple(graphs),
        sizes=_sizes(manifest, None if base is None else base.manifest),
        utterances=tuple(speech.utterances),
        difference=speech.difference,
        checks=tuple(checks),
        failures=(*failures, *(check.sentence for check in checks if not check.passed), *speech.failures),
        notes=(*notes, *speech.notes),
    )
    return Verification(report, bundle, base, tuple(speech.sounds))


def record(found: Verification) -> Path:
    """Leave the report in the bundle, which is how it becomes ready, or not; gives the report's path.

    Raises:
        OSError: The folder may not be written to, or the disk is full.
    """
    verdict = Verdict(
        files=files_digest(found.bundle.manifest),
        passed=found.report.passed,
        reference="" if found.reference is None else files_digest(found.reference.manifest),
        failures=found.report.failures,
        created_by=f"voxedge {version('voxedge')}",
    )
    return record_verdict(found.bundle, verdict, found.report.to_json())


def _sizes(manifest: Manifest, reference: Manifest | None) -> tuple[GraphSize, ...]:
    """Weights of every graph, beside the reference's."""
    names = dict.fromkeys(graph.name for graph in manifest.graphs)

    def size(of: Manifest, name: str) -> int:
        return of.files[of.graph(name).data].size

    return tuple(
        GraphSize(name, size(manifest, name), None if reference is None else size(reference, name)) for name in names
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
    coarse = sorted({graph.precision for graph in reference.graphs} - {"fp32"})
    if coarse:
        raise InputError(f"expected an FP32 reference, found {', '.join(coarse)}; export one with --precision fp32")
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
