"""Every name of TensorRT that the source uses exists in every version that it claims."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorrt_surface import API, members

from voxedge.engines.errors import BackendUnavailableError
from voxedge.engines.trt import api

SOURCE = Path(api.__file__).parent
# What the source calls the objects of a class: a local name decides the class, so that methods are checked, too.
CLASSES = {
    "builder": "Builder",
    "builder_config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "error": "ParserError",
    "parsed": "ITensor",
    "tensor": "ITensor",
    "serialized": "IHostMemory",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "refitter": "Refitter",
    "refit_parser": "OnnxParserRefitter",
    "inspector": "EngineInspector",
}
FILES_WITH_OBJECTS = {"builder.py", "network.py", "runner.py", "contexts.py", "session.py", "config.py"}
VERSIONS = {"tensorrt": ("10.3", "10.13", "11.4"), "tensorrt_rtx": ("rtx-1.7",)}


def module_names(tree: ast.AST) -> Iterator[str]:
    """`X` and `X.Y` of every `trt.X.Y`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
            yield node.attr
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            inner = node.value
            if isinstance(inner.value, ast.Name) and inner.value.id == "trt":
                yield f"{inner.attr}.{node.attr}"


def object_names(tree: ast.AST) -> Iterator[str]:
    """`Class.member` of every use of an object whose name is in `CLASSES`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in CLASSES:
            yield f"{CLASSES[node.value.id]}.{node.attr}"


def used_names() -> dict[str, str]:
    found = {}
    for path in SOURCE.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = set(module_names(tree))
        if path.name in FILES_WITH_OBJECTS:
            names |= {name for name in object_names(tree) if not is_ours(name)}
        found.update(dict.fromkeys(names, path.name))
    return found


def is_ours(name: str) -> bool:
    """Members of voxedge's own records that go by the same local names."""
    return name in {"ITensor.sizes", "ITensor.fits", "ITensor.address", "ParserError.errno"}


def lacking(name: str) -> list[str]:
    """Versions that should have the name and do not."""
    flavour = api.ONLY_IN.get(name) or api.ONLY_IN.get(name.split(".")[0])
    versions = VERSIONS[flavour] if flavour else tuple(API)
    owner, _, member = name.partition(".")
    return [v for v in versions if owner not in API[v] or (member and member not in members(v, owner))]


def test_names_exist_everywhere() -> None:
    used = used_names()
    assert len(used) > 30
    assert {"IBuilderConfig.set_memory_pool_limit", "OnnxParser.parse_from_file", "BuilderFlag.REFIT"} <= set(used)
    assert {f"{name} ({place})": lacking(name) for name, place in used.items() if lacking(name)} == {}


def test_the_check_can_fail() -> None:
    tree = ast.parse("trt.BuilderFlag.FP16\nbuilder.platform_has_tf32\ntrt.ComputeCapability.SM90")
    names = [*module_names(tree), *object_names(tree)]
    assert lacking("BuilderFlag.FP16") == ["11.4", "rtx-1.7"]
    assert lacking("Builder.platform_has_tf32") == ["11.4", "rtx-1.7"]
    assert lacking("ComputeCapability.SM90") == ["rtx-1.7"]
    assert {"BuilderFlag.FP16", "Builder.platform_has_tf32", "ComputeCapability.SM90"} <= set(names)


def test_exceptions_are_used_and_needed() -> None:
    used = used_names()
    for name, flavour in api.ONLY_IN.items():
        assert name in used
        others = [v for other, versions in VERSIONS.items() if other != flavour for v in versions]
        owner, _, member = name.partition(".")
        assert all(owner not in API[v] or (member and member not in members(v, owner)) for v in others)


@pytest.mark.parametrize(
    ("text", "expected"), [("10.3.0.30", (10, 3, 0, 30)), ("11.4.0+cuda13", (11, 4, 0)), ("weird", ())]
)
def test_parse_version(text: str, expected: tuple[int, ...]) -> None:
    assert api.parse_version(text) == expected


def test_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(api.importlib, "import_module", fail)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'voxedge\[rtx\]'"):
        api.load("tensorrt_rtx", tmp_path)
    with pytest.raises(BackendUnavailableError, match="pip install tensorrt"):
        api.load("tensorrt", tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    with pytest.raises(BackendUnavailableError, match="--system-site-packages"):
        api.load("tensorrt", tmp_path)


def test_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Old:
        __version__ = "8.6.2"

    monkeypatch.setattr(api.importlib, "import_module", lambda _: Old)
    with pytest.raises(BackendUnavailableError, match=r"tensorrt 10\.3 or newer, found 8\.6\.2"):
        api.load("tensorrt", tmp_path)


def test_devices_of_the_installed_library() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert api.load("tensorrt_rtx").devices() == api.RTX_DEVICES
