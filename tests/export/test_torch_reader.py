"""torch files as hostile input: nothing in them runs, views read right, damage is a CheckpointError."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import Golden, assert_identical
from safetensors.numpy import load_file

from voxedge.engines.errors import CheckpointError, MissingResourceError
from voxedge.export.checkpoint.file_access import SourceFile
from voxedge.export.checkpoint.stable_audio import load_dit, load_vae
from voxedge.export.checkpoint.strided import StridedTensor, row_major
from voxedge.export.checkpoint.tensors import materialise
from voxedge.export.checkpoint.weight_files import open_weights

torch = pytest.importorskip("torch")
from voxedge.export.checkpoint.torch_reader import read_torch  # noqa: E402 - needs torch

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(content: object, name: str = "weights.pt", **options: Any) -> Path:  # noqa: ANN401
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


def values_of(tensor: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401
    plain = tensor.detach()
    return np.asarray(plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy())


def views() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(6, 8, generator=generator)
    cube = torch.randn(5, 6, 7, generator=generator)
    return {
        "plain": base,
        "transposed": base.t(),
        "window": base[1:5, 2:6],
        "column": base[:, 3],
        "every other": cube[::2, 1:, ::3].permute(2, 0, 1),
        "with a one": cube[:4, :1].transpose(0, 1),
        "parameter": torch.nn.Parameter(base.bfloat16()),
        "half": base.half(),
        "scalar": torch.tensor(2.5),
        "integers": torch.arange(5),
        "booleans": torch.tensor([True, False]),
        "empty": torch.zeros(3, 0),
    }


def test_layouts_read_as_torch_reads_them(save: Save) -> None:
    tensors = read_torch(save(views()))
    assert set(tensors) == set(views())
    for key, tensor in views().items():
        expected = values_of(tensor)
        for max_bytes in (1, 8, 33, 64, 10_000):
            np.testing.assert_array_equal(materialise(tensors[key], max_bytes), expected, err_msg=key)
        if expected.ndim and expected.shape[0] > 1 and expected.size:
            rows = tensors[key].rows(1, expected.shape[0])  # type: ignore[attr-defined]
            np.testing.assert_array_equal(materialise(rows, 16), expected[1:], err_msg=key)


def test_blocks_of_views_are_small(save: Save) -> None:
    tensors = read_torch(save({"a": torch.zeros(64, 64).t(), "b": torch.zeros(64, 64)[:, ::2]}))
    for tensor in tensors.values():
        assert max(values.nbytes for _, values in tensor.blocks(512)) <= 512


def test_expanded_views_are_refused(save: Save) -> None:
    with pytest.raises(CheckpointError, match=r"overlaps itself .* save it with \.contiguous"):
        read_torch(save({"a": torch.ones(1).expand(1000)}))


STATES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "plain": ({"a.weight": 1, "epoch": 3}, {"a.weight"}),
    "state_dict": ({"state_dict": {"a": 1}, "optimizer": {"state": {0: {"step": 1}}}}, {"a"}),
    "lightning": ({"epoch": 1, "state_dict": {"a": 1}, "callbacks": {"x": {"y": 2}}, "lr_schedulers": []}, {"a"}),
    "one mapping": ({"model": {"a": 1}, "step": 5}, {"a"}),
    "nested": ({"net": {"dit": {"a": 1}, "regulator": {"b": 1}}, "epoch": 1}, {"dit.a", "regulator.b"}),
    "several": ({"generator": {"a": 1}, "ema": {"a": 1}}, {"generator.a", "ema.a"}),
}


def with_tensors(tree: Any) -> Any:  # noqa: ANN401
    """The number 1 stands for a tensor."""
    if isinstance(tree, dict):
        return {key: with_tensors(value) if key not in ("epoch", "step") else value for key, value in tree.items()}
    return torch.ones(2) if tree == 1 else tree


@pytest.mark.parametrize(("content", "names"), STATES.values(), ids=STATES.keys())
def test_what_training_programs_put_around_weights(save: Save, content: dict[str, Any], names: set[str]) -> None:
    assert set(read_torch(save(with_tensors(content)))) == names


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3), {}])
def test_files_without_named_tensors(save: Save, content: object) -> None:
    with pytest.raises(CheckpointError, match="safetensors"):
        read_torch(save(content))


class Payload:
    """Unpickling this calls a function of the attacker's choice."""

    def __init__(self, function: Callable[..., object], argument: str) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return self.call


def payloads(marker: Path) -> list[Payload]:
    import os

    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return [Payload(os.system, f"touch {marker}"), Payload(eval, code), Payload(exec, code)]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(save: Save, tmp_path: Path, number: int, zipped: bool) -> None:
    marker = tmp_path / "marker"
    payload = payloads(marker)[number]
    pickle.loads(pickle.dumps(payload))  # noqa: S301 - the payload works where pickles are trusted
    assert marker.exists()
    marker.unlink()
    path = save({"a": torch.ones(2), "b": payload}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="safetensors"):
        read_torch(path)
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(CheckpointError, match="safetensors"):
        read_torch(path)
    assert not marker.exists()


def test_old_format_and_other_files(save: Save, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"since version 1\.6"):
        read_torch(save({"a": torch.ones(2)}, _use_new_zipfile_serialization=False))
    for content in (b"", b"PK", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x80\x02.", b"text" * 100):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"other\.pt"):
            read_torch(tmp_path / "other.pt")
    with pytest.raises(MissingResourceError):
        read_torch(tmp_path / "gone.pt")
    with pytest.raises(CheckpointError, match="expected a file"):
        read_torch(tmp_path)


def repack(path: Path, method: int = zipfile.ZIP_STORED, **changes: bytes) -> Path:
    """Write the archive again, with another method or with some members replaced."""
    target = path.with_name("repacked.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", method) as archive:
        for member in source.infolist():
            name = member.filename.rpartition("/")[2]
            archive.writestr(member.filename, changes.get(name, source.read(member)), method)
    return target


def test_compressed_and_byte_swapped_archives(save: Save) -> None:
    path = save({"a": torch.arange(100.0)})
    np.testing.assert_array_equal(materialise(read_torch(repack(path))["a"]), np.arange(100.0))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_torch(repack(path, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="byte-swapped"):
        read_torch(repack(path, byteorder=b"big"))


def test_a_storage_shorter_than_its_tensor(save: Save) -> None:
    path = save({"a": torch.arange(100.0)})
    with zipfile.ZipFile(path) as archive:
        name = next(each for each in archive.namelist() if "/data/" in each).rpartition("/")[2]
    with pytest.raises(CheckpointError, match="does not fit the 16 bytes"):
        read_torch(repack(path, **{name: bytes(16)}))


def test_truncations(save: Save) -> None:
    path = save({"a": torch.arange(20.0), "b": torch.ones(3)})
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_torch(path)


def test_flipped_bits_are_harmless_or_refused(save: Save) -> None:
    """Values are protected too: whole storages are compared with the archive's checksums while they are read."""
    arrays = {"a": torch.arange(20.0), "b": torch.ones(3)}
    path = save(arrays)
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(11)
    refused = 0
    for position in range(0, len(content), 2):
        mask = 1 << int(generator.integers(8))
        content[position] ^= mask
        path.write_bytes(content)
        content[position] ^= mask
        try:
            found = {key: materialise(tensor) for key, tensor in read_torch(path).items()}
        except CheckpointError:
            refused += 1
            continue
        for values, expected in zip(found.values(), arrays.values(), strict=True):  # a name may have changed
            np.testing.assert_array_equal(values, expected.numpy())
    assert refused > 100  # the test reaches the checks


def test_a_changed_value_is_noticed(save: Save) -> None:
    path = save({"a": torch.full((1000,), 3.0)})
    content = path.read_bytes()
    place = content.index(np.full(1000, 3.0, np.float32).tobytes())
    path.write_bytes(content[: place + 1000] + b"\x01" + content[place + 1001 :])
    tensor = read_torch(path)["a"]
    with pytest.raises(CheckpointError, match="expected checksum"):
        materialise(tensor, 100)


def test_sparse_tensors_and_other_types_are_named(save: Save) -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(CheckpointError, match=r"odd: expected a dense tensor"):
            read_torch(save({"odd": tensor, "even": torch.ones(2)}))


@pytest.mark.parametrize("strides", [(0, 1), (1, 1), (2, 1), (-4, 1)])
def test_overlapping_strides_are_refused(tmp_path: Path, strides: tuple[int, int]) -> None:
    (tmp_path / "data").write_bytes(bytes(64))
    with pytest.raises(CheckpointError, match="overlaps"):
        StridedTensor(SourceFile.of(tmp_path / "data"), "x", (4, 4), strides, "float32", 0)


def test_row_major_strides() -> None:
    assert [row_major(shape) for shape in ((), (5,), (2, 3, 4))] == [(), (1,), (12, 4, 1)]


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_released_folders_with_torch_files(golden: Golden, tmp_path: Path, suffix: str) -> None:
    source = golden("stable_dit") / "checkpoint"
    arrays = {key: torch.from_numpy(array) for key, array in load_file(source / "model.safetensors").items()}
    shutil.copy(source / "model_config.json", tmp_path)
    torch.save({"state_dict": arrays}, tmp_path / f"model{suffix}")
    dit = load_dit(tmp_path)
    assert dit.files[-1].suffix == suffix
    assert_identical(dict(dit.tensors), dict(load_dit(source).tensors))


def test_a_vocoder_from_a_training_checkpoint(golden: Golden, tmp_path: Path) -> None:
    source = golden("oobleck_odd") / "checkpoint"
    arrays = {f"autoencoder.{key}": torch.from_numpy(a) for key, a in load_file(source / "model.safetensors").items()}
    shutil.copy(source / "model_config.json", tmp_path)
    torch.save({"state_dict": arrays, "pytorch-lightning_version": "2.1"}, tmp_path / "last.ckpt")
    assert_identical(dict(load_vae(tmp_path).tensors), dict(load_vae(source).tensors))


def test_safetensors_are_preferred_and_do_not_import_torch(golden: Golden, tmp_path: Path) -> None:
    source = golden("stable_dit") / "checkpoint"
    shutil.copytree(source, tmp_path / "both")
    torch.save({"a": torch.ones(2)}, tmp_path / "both" / "model.ckpt")
    assert open_weights(tmp_path / "both").files[0].name == "model.safetensors"
    script = (
        "import sys; from pathlib import Path; from voxedge.export.checkpoint.stable_audio import load_dit; "
        "from voxedge.export.checkpoint.moe_tts import load_moe_tts; load_dit(Path(sys.argv[1])); "
        "sys.exit('torch' in sys.modules or 'yaml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(source)]).returncode == 0
