"""Statistics under another bundle's names; FP16 graphs are looked at by `tests/export/test_export_calibrated.py`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_voice import tiny_voice
from toy_layers import PROVENANCE, statistics_of

from voxedge.calibration.graph_files import read_model
from voxedge.calibration.statistics import Statistics, bundle_hash
from voxedge.calibration.transfer import statistics_for
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import InputError


def test_activations_are_found_by_the_paths_of_their_layers() -> None:
    voice = Bundle.open(tiny_voice())
    model = read_model(voice.graph_path(voice.manifest.graph("dit")))
    product = next(node for node in model.graph if node.op_type == "MatMul")
    name = str(product.inputs[0].name)  # type: ignore[union-attr]
    found = statistics_of({"x": (-1, np.ones((4, 3), np.float32))}).tensor("toy", "x")
    assert found is not None
    provenance = dataclasses.replace(PROVENANCE, bundle_sha256=bundle_hash(voice.manifest))
    given = Statistics.of(provenance, {("dit", name): found, ("dit", "nowhere"): found})
    moved = statistics_for(voice, given, voice)
    moved.check(voice.manifest)
    assert moved.keys == (("dit", name),)
    assert moved.tensor("dit", name) is found
    assert moved.tensor("dit", "nowhere") is None
    assert moved.tensor("text_expert", name) is None


def test_statistics_of_another_bundle_are_refused() -> None:
    voice = Bundle.open(tiny_voice())
    with pytest.raises(InputError, match="those of another one"):
        statistics_for(voice, Statistics.of(PROVENANCE, {}), voice)
