"""Let an FP32 bundle speak a calibration set and keep statistics of its activations.

In: a bundle, a set, a target file. Out: `Statistics`, written when all is said. Tokens of the language model feed the
decoder, every solver step of the decoder feeds its own statistics, and its latents feed the vocoder, as when a listener
waits. After each line the exact state is put beside the target, so that an interrupted run can go on and end in the
same file bit for bit. Does not choose scales.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from voxedge.calibration.accumulate import TensorAccumulator
from voxedge.calibration.recording import Recording
from voxedge.calibration.sets import CalibrationSet, Line
from voxedge.calibration.speaking import observe
from voxedge.calibration.statistics import Provenance, Statistics, bundle_hash
from voxedge.calibration.watching import Accumulators, WatchingLoader
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InputError, MissingResourceError, VoxedgeError
from voxedge.engines.files import write_atomically
from voxedge.engines.memory import give_back_memory
from voxedge.engines.ort import load_onnxruntime
from voxedge.engines.records import to_dict
from voxedge.runtime.config import SynthesisConfig
from voxedge.runtime.systems.base import Utterance
from voxedge.runtime.text import split_text

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """How a set is spoken."""

    seed: int = 0
    """Of the first line; each further one takes the next, unless it names its own."""
    max_tokens: int = 250
    """Speech tokens of one utterance at most: ten seconds at 25 per second. It bounds time and memory."""
    resume: bool = False
    """Go on from what an interrupted run left beside the target."""
    threads: int | None = None
    """CPU threads; None for the physical cores."""


def progress_path(target: Path) -> Path:
    """Where the state of an unfinished calibration is."""
    return target.with_name(f"{target.name}.progress")


def collect_statistics(
    bundle: Bundle, calibration_set: CalibrationSet, target: Path, config: CollectConfig, on_progress: Progress
) -> Statistics:
    """Speak every line and write the statistics.

    Args:
        bundle: At FP32.
        calibration_set: What is said.
        target: The file to write.
        config: How.
        on_progress: Told about every line.

    Raises:
        InputError: The bundle is not FP32, a line cannot be said, unfinished work is in the way or of another kind, or
            another process writes this target.
        InferenceError: A graph failed or gave values that are not finite.
        BackendUnavailableError: ONNX Runtime is not installed.
    """
    _check_bundle(bundle)
    _check_target(target)
    runtime = load_onnxruntime("cpu")
    provenance = Provenance(
        bundle_sha256=bundle_hash(bundle.manifest),
        set_name=calibration_set.name,
        set_sha256=calibration_set.sha256,
        lines=len(calibration_set.lines),
        seed=config.seed,
        max_tokens=config.max_tokens,
        voxedge=_version(),
        onnxruntime=runtime.__version__,
    )
    with _alone(target):
        done, accumulators = _begin(target, provenance, config.resume)
        loader = WatchingLoader(bundle, accumulators, config.threads)
        try:
            for number, line in enumerate(calibration_set.lines[done:], done):
                on_progress("calibrating", number, provenance.lines)
                _say(bundle, loader, line, number, config)
                _save_progress(target, provenance, number + 1, accumulators)
        finally:
            loader.close()
        on_progress("calibrating", provenance.lines, provenance.lines)
        found = {key: accumulator.finish() for key, accumulator in accumulators.items()}
        statistics = Statistics.of(provenance, {key: value for key, value in found.items() if value is not None})
        statistics.save(target)
        progress_path(target).unlink(missing_ok=True)
    return statistics


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock, which goes with the process however that ends: two would overwrite each other's progress."""
    path = target.with_name(f".{target.name}.lock")
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another calibration writes {target}; wait for it, or name another file") from error
        yield
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _version() -> str:
    from importlib.metadata import version

    return version("voxedge")


def _check_bundle(bundle: Bundle) -> None:
    others = [f"{spec.name} ({spec.precision})" for spec in bundle.manifest.graphs if spec.precision != "fp32"]
    if others:
        raise InputError(
            f"expected a bundle at FP32, found {', '.join(others)}; calibrate what `voxedge export --precision fp32` "
            "wrote of the same checkpoint"
        )


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise InputError(f"expected a file for the statistics, found the folder {target}; name a file in it")
    if not target.absolute().parent.is_dir():
        raise MissingResourceError(f"expected a folder {target.absolute().parent} for the statistics, found none")


def _say(bundle: Bundle, loader: WatchingLoader, line: Line, number: int, config: CollectConfig) -> None:
    """Say one line, however long it is."""
    try:
        system = observe(bundle, loader)
        seed = config.seed + number if line.seed is None else line.seed
        first = Utterance(line.text, _shortened(system.default_config, config), seed, line.description)
        for index, text in enumerate(split_text(line.text, *system.budget(first))):
            utterance = dataclasses.replace(first, text=text, index=index)
            samples = system.exercise(utterance)
            unheard = Recording(limit=0)  # nothing of what was watched already
            system.add_unheard(samples, unheard)
            for name in dict.fromkeys(spec.name for spec in bundle.manifest.graphs):
                for feeds in unheard.calls(name):
                    loader.load(name).run(feeds)
    except VoxedgeError as error:
        raise type(error)(f"line {number + 1} of the set: {error}") from error
    give_back_memory()


def _shortened(given: SynthesisConfig, config: CollectConfig) -> SynthesisConfig:
    cap = min(given.sampling.max_tokens, config.max_tokens)
    sampling = dataclasses.replace(given.sampling, max_tokens=cap, min_tokens=min(given.sampling.min_tokens, cap))
    return dataclasses.replace(given, sampling=sampling)


def _begin(target: Path, provenance: Provenance, resume: bool) -> tuple[int, Accumulators]:
    """How many lines are done, and what they added up to."""
    path = progress_path(target)
    if not path.exists():
        if resume:
            _log.info("%s: nothing to resume, calibration starts at the first line", path)
        return 0, {}
    if not resume:
        raise InputError(
            f"{path} holds the state of an unfinished calibration; add --resume to go on, or delete it to start again"
        )
    try:
        file: Any = safe_open(str(path), framework="numpy")
        described = json.loads((file.metadata() or {})["progress"])
        found, done, keys = dict(described["provenance"]), int(described["done"]), described["keys"]
        accumulators = {
            (str(graph), str(value)): TensorAccumulator(int(axis), _state(file, index))
            for index, (graph, value, axis) in enumerate(keys)
        }
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it to start again") from error
    _check_same(path, found, to_dict(provenance))
    return done, accumulators


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        listed = "; ".join(f"{name} {found.get(name)!r} in place of {wanted[name]!r}" for name in different)
        raise InputError(
            f"{path} belongs to another calibration: {listed}; give the same bundle, set and seed, or delete it to "
            "start again"
        )


def _state(file: Any, index: int) -> Mapping[str, npt.NDArray[Any]]:  # noqa: ANN401 - safetensors has no types
    return {name: file.get_tensor(f"{index}|{name}") for name in TensorAccumulator.STATE}


def _save_progress(target: Path, provenance: Provenance, done: int, accumulators: Accumulators) -> None:
    arrays = {
        f"{index}|{name}": np.ascontiguousarray(array)
        for index, accumulator in enumerate(accumulators.values())
        for name, array in accumulator.state().items()
    }
    keys = [[graph, value, accumulator.axis] for (graph, value), accumulator in accumulators.items()]
    described = {"provenance": to_dict(provenance), "done": done, "keys": keys}
    write_atomically(progress_path(target), save(arrays, {"progress": json.dumps(described)}))
