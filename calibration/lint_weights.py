"""Weights of a graph: external, in one file, aligned, each stored once.

In: a `GraphView`. Out: findings. Looks at offsets and, where two large tensors could be equal, at their bytes in small
pieces; never loads a tensor.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import onnx
from onnx import external_data_helper

from voxedge.calibration.graph_files import INLINE_BYTES
from voxedge.calibration.lint_graph import ExternalPlace, Finding, GraphView, external_place, tensor_bytes
from voxedge.engines.data_file import ALIGNMENT, SMALL_ALIGNMENT
from voxedge.engines.files import CHUNK_BYTES, format_bytes

LARGE_BYTES = 1 << 20
"""Smallest tensor that must not be stored twice."""

_SAMPLE_BYTES = 4096


def check_weights(view: GraphView) -> Iterator[Finding]:
    """Findings on weights inside the graph, outside its data file, unaligned, overlapping or stored twice."""
    yield from _check_inline(view)
    places = {
        name: external_place(tensor)
        for name, tensor in view.initializers.items()
        if external_data_helper.uses_external_data(tensor)
    }
    findings = [finding for name, place in places.items() for finding in _check_place(view, name, place)]
    yield from findings
    yield from _check_overlaps(places)
    if not findings:
        yield from _check_duplicates(view, places)


def _check_inline(view: GraphView) -> Iterator[Finding]:
    for tensor in view.model.graph.sparse_initializer:
        yield Finding("external-data", tensor.values.name, "expected dense weights, found a sparse initialiser")
    tensors = [(name, tensor) for name, tensor in view.initializers.items()]
    tensors += [
        (node.name, attribute.t)
        for node in view.model.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    for name, tensor in tensors:
        size = tensor_bytes(tensor)
        if size > INLINE_BYTES and not external_data_helper.uses_external_data(tensor):
            yield Finding(
                "external-data",
                name,
                f"expected tensors of more than {INLINE_BYTES} bytes in {view.spec.data}, "
                f"found {format_bytes(size)} inside the graph file",
            )


def _check_place(view: GraphView, name: str, place: ExternalPlace) -> Iterator[Finding]:
    wanted = os.path.relpath(view.spec.data, PurePosixPath(view.spec.path).parent)
    if place.location != wanted:
        yield Finding("external-data", name, f"expected its values in {wanted!r}, found {place.location!r}")
        return
    size = tensor_bytes(view.initializers[name])
    if place.length != size:
        yield Finding("external-data", name, f"expected {size} bytes for its shape and type, found {place.length}")
    boundary = ALIGNMENT if size >= ALIGNMENT else SMALL_ALIGNMENT
    if place.offset < 0 or place.offset % boundary:
        yield Finding("external-data", name, f"expected a multiple of {boundary}, found the offset {place.offset}")
    path = view.folder / place.location
    held = path.stat().st_size if path.is_file() else 0
    if place.offset + place.length > held:
        yield Finding(
            "external-data", name, f"expected its values up to byte {place.offset + place.length}, {path} has {held}"
        )


def _check_overlaps(places: dict[str, ExternalPlace]) -> Iterator[Finding]:
    """Two tensors may share their bytes as a whole, for two types of graphs or tied weights, but not in part."""
    ordered = sorted(places.items(), key=lambda item: (item[1].location, item[1].offset, item[1].length))
    widest: tuple[str, ExternalPlace] | None = None
    for name, place in ordered:
        if widest is None or widest[1].location != place.location:
            widest = name, place
        elif widest[1] == place:
            continue
        elif place.offset < widest[1].offset + widest[1].length:
            yield Finding("external-data", name, f"its bytes overlap those of {widest[0]!r}")
        if place.offset + place.length > widest[1].offset + widest[1].length:
            widest = name, place


def _check_duplicates(view: GraphView, places: dict[str, ExternalPlace]) -> Iterator[Finding]:
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    with _open_data(view) as file:
        for name, place in places.items():
            if place.length >= LARGE_BYTES:
                key = (place.length, *_samples(file, place))
                alike[key].append(name)
        for names in alike.values():
            for position, name in enumerate(names):
                twin = _find_twin(file, places, name, names[:position])
                if twin is not None:
                    size = format_bytes(places[name].length)
                    yield Finding(
                        "duplicates", name, f"expected one copy of equal weights, found {twin!r} again ({size})"
                    )


def _open_data(view: GraphView) -> BinaryIO:
    path = view.folder / os.path.relpath(view.spec.data, PurePosixPath(view.spec.path).parent)
    return open(path if path.is_file() else os.devnull, "rb")  # noqa: PTH123 - os.devnull is no Path


def _samples(file: BinaryIO, place: ExternalPlace) -> Iterator[bytes]:
    for share in (0, place.length // 2, place.length - _SAMPLE_BYTES):
        file.seek(place.offset + share)
        yield file.read(_SAMPLE_BYTES)


def _find_twin(file: BinaryIO, places: dict[str, ExternalPlace], name: str, others: list[str]) -> str | None:
    for other in others:
        same_place = places[other].offset == places[name].offset
        if not same_place and _equal_bytes(file, places[other], places[name]):
            return other
    return None


def _equal_bytes(file: BinaryIO, first: ExternalPlace, second: ExternalPlace) -> bool:
    for start in range(0, first.length, CHUNK_BYTES):
        count = min(CHUNK_BYTES, first.length - start)
        file.seek(first.offset + start)
        chunk = file.read(count)
        file.seek(second.offset + start)
        if chunk != file.read(count):
            return False
    return True
