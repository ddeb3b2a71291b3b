"""The audio codec through the exported graphs: every stage, codes, samples, batches, prefixes and streams."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from golden_graphs import read

from voxedge.engines.backend import Array, Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.loader import GraphLoader, LoadOptions
from voxedge.engines.manifest import TensorSpec
from voxedge.engines.ort import OrtEngine, OrtOptions
from voxedge.export.checkpoint.config_file import load_json
from voxedge.export.checkpoint.moss_codec import CodecConfig, Patch, Transformer, parse_moss_codec
from voxedge.export.modules.attention import apply_rotary, rotary_tables
from voxedge.runtime.codec import Codec
from voxedge.runtime.codec_settings import DECODER, ENCODER
from voxedge.runtime.sliding import SlidingState

CASE = "moss_audio_tokenizer"
# The recordings' own advice: FP32 on both sides, of the largest value.
RECORDED = 2e-4
# The same sums in another order. One of n products is off by sqrt(n) 2 ** -24 of its size, 6e-7 for n = 100; some forty
# such sums follow one another, and independent errors add up as their root: 4e-6.
REORDERED = 1e-5
LATENTS = "latents"


class Loaded:
    """The bundle and its recordings."""

    def __init__(self, case: Path, bundle: Path) -> None:
        self.arrays = read(case)
        config = case / "checkpoint" / "config.json"
        self.config: CodecConfig = parse_moss_codec(load_json(config), str(config))
        self.bundle = Bundle.open(bundle)
        self.codec = Codec.of(self.bundle, GraphLoader(self.bundle, LoadOptions("cpu", threads=1)))

    def model(self, name: str) -> onnx.ModelProto:
        """One of the graphs with its weights."""
        return onnx.load(str(self.bundle.graph_path(self.bundle.manifest.graph(name))))

    def probed(self, name: str, probes: Mapping[str, str], folder: Path) -> Engine:
        """The graph with inner values as further outputs: names of ours by names of theirs."""
        model, spec = self.model(name), self.bundle.manifest.graph(name)
        for ours, inner in probes.items():
            model.graph.node.append(onnx.helper.make_node("Identity", [inner], [ours]))
            kind = onnx.helper.make_tensor_value_info(ours, onnx.TensorProto.FLOAT, None)
            model.graph.output.append(kind)
        path = folder / f"{name}.onnx"
        onnx.save(model, str(path))
        further = tuple(TensorSpec(ours, "float32", ("batch", f"{ours} 1", f"{ours} 2")) for ours in probes)
        return OpenEngine(path, dataclasses.replace(spec, outputs=(*spec.outputs, *further)), OrtOptions(threads=1))


class OpenEngine(OrtEngine):
    """An engine of a graph that was given more outputs than the manifest knows."""

    def _check_boundary(self, path: Path) -> None:
        assert path.exists()


@pytest.fixture(scope="module")
def loaded(golden: Callable[[str], Path], codec_bundle: Path) -> Loaded:
    return Loaded(golden(CASE), codec_bundle)


def near(found: Array, recorded: Array, share: float = RECORDED, label: str = "") -> None:
    assert found.shape == recorded.shape, label
    limit = share * max(1.0, float(np.abs(recorded).max()))
    np.testing.assert_allclose(found, recorded, atol=limit, rtol=0, err_msg=label)


def names(loaded: Loaded, pattern: str) -> Iterator[re.Match[str]]:
    """Matches among the recordings' names; there must be some."""
    found = [match for name in loaded.arrays if (match := re.fullmatch(pattern, name))]
    assert found, pattern
    return iter(found)


def framed(loaded: Loaded, samples: Array) -> tuple[Array, Array]:
    """[1, frames, hop] with zeros behind the end, and the count of whole frames."""
    hop = loaded.config.hop
    padded = np.pad(samples, (0, -len(samples) % hop))
    return padded.reshape(1, -1, hop), np.array([len(samples) // hop], np.int32)


def empty_state(engine: Engine, batch: int = 1) -> dict[str, Array]:
    sizes = {"past": 0, "batch": batch}
    return {
        spec.name: np.zeros(spec.sizes(sizes), spec.dtype)
        for spec in engine.spec.inputs
        if spec.name.startswith("past.")
    }


def run_whole(
    loaded: Loaded, engine: Engine, frames: int, lengths: Array | None = None, **given: Array
) -> dict[str, Array]:
    """All outputs of a signal but the state, in as few calls as the graph allows."""
    past = empty_state(engine, next(iter(given.values())).shape[1 if "codes" in given else 0])
    limit = engine.spec.profiles["main"]["frames"].max
    parts: list[dict[str, Array]] = []
    for start in range(0, frames, limit):
        stop = min(start + limit, frames)
        feeds = {name: np.ascontiguousarray(take(name, array, start, stop)) for name, array in given.items()}
        if lengths is not None:
            feeds["lengths"] = np.clip(lengths - start, 0, stop - start).astype(np.int32)
        found = engine.run({**feeds, **past})
        new = {name: np.concatenate([rows, found.pop(name.replace("past.", "new.", 1))]) for name, rows in past.items()}
        past = {name: np.ascontiguousarray(rows[-loaded.config.context :]) for name, rows in new.items()}
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts], 2 if name == "codes" else 1) for name in parts[0]}


def take(name: str, array: Array, start: int, stop: int) -> Array:
    """Frames of an input."""
    return array[:, :, start:stop] if name == "codes" else array[:, start:stop]


def ends(loaded: Loaded, name: str) -> dict[str, str]:
    """The value that each module of a direction ends with, found by the paths that node names promise."""
    modules = loaded.config.encoder if name == ENCODER else loaded.config.decoder
    nodes = loaded.model(name).graph.node
    return {
        f"stage{number}": next(
            node.output[0] for node in reversed(nodes) if node.name.startswith(f"/chain/stages.{number}/")
        )
        for number in range(len(modules))
    }


# encoding


def test_codes(loaded: Loaded) -> None:
    """All columns: also those of a last frame that is not whole, which the encoder makes from a residual of zeros."""
    engine = loaded.codec.engine(ENCODER)
    for match in names(loaded, r"enc_([a-z]+)_codes"):
        label = match[1]
        if label == "batch":
            continue
        audio, lengths = framed(loaded, loaded.arrays[f"wav_{label}"])
        found = run_whole(loaded, engine, audio.shape[1], lengths, audio=audio)["codes"]
        np.testing.assert_array_equal(found, loaded.arrays[match[0]], err_msg=label)
        np.testing.assert_array_equal(lengths, loaded.arrays[f"enc_{label}_lengths"], err_msg=label)
        if lengths[0]:
            codes = loaded.codec.encode(loaded.arrays[f"wav_{label}"])
            np.testing.assert_array_equal(codes, loaded.arrays[match[0]][:, 0, : lengths[0]], err_msg=label)


def test_stages_of_the_encoder(loaded: Loaded, tmp_path: Path) -> None:
    probes = ends(loaded, ENCODER)
    last = list(probes)[-1]
    engine = loaded.probed(ENCODER, probes, tmp_path)
    for match in names(loaded, r"enc_([a-z]+)_hidden"):
        audio, lengths = framed(loaded, loaded.arrays[f"wav_{match[1]}"])
        found = run_whole(loaded, engine, audio.shape[1], lengths, audio=audio)
        near(found[last].transpose(0, 2, 1), loaded.arrays[match[0]], label=match[0])
        for stage in probes:
            key = f"enc_{match[1]}_{stage}"
            if key in loaded.arrays:
                near(found[stage].transpose(0, 2, 1), loaded.arrays[key], label=key)


def test_fewer_codebooks_are_a_prefix(loaded: Loaded) -> None:
    for match in names(loaded, r"enc_([a-z]+)_nq(\d+)_codes"):
        codes = loaded.codec.encode(loaded.arrays[f"wav_{match[1]}"], int(match[2]))
        np.testing.assert_array_equal(codes[:, None], loaded.arrays[match[0]])


def test_batches(loaded: Loaded) -> None:
    arrays = loaded.arrays
    waves = [arrays[f"wav_{name}"] for name in ("long", "short", "ragged")]
    for key in ("enc_batch_codes", "enc_batch_nq_codes"):
        count, rows, _ = arrays[key].shape
        for row, codes in enumerate(loaded.codec.encode_batch(waves[:rows], count)):
            assert codes.shape[1] == arrays["enc_batch_lengths"][row]
            np.testing.assert_array_equal(codes, arrays[key][:, row, : codes.shape[1]], err_msg=f"{key} {row}")
    short = arrays["enc_short_codes"][:, 0]
    made = loaded.codec.decode_batch([arrays["rand_codes"][:, 0], short])
    for row, samples in enumerate(made):
        assert len(samples) == arrays["dec_batch_lengths"][row]
        near(samples.T, arrays["dec_batch_wav"][row][:, : len(samples)])


def test_padding_in_a_batch_counts_as_silence_to_the_quantiser(loaded: Loaded) -> None:
    """The reference's own columns behind each row's end: codes of a residual of zeros."""
    arrays, engine = loaded.arrays, loaded.codec.engine(ENCODER)
    parts = [framed(loaded, arrays[f"wav_{name}"]) for name in ("long", "short", "ragged")]
    longest = max(audio.shape[1] for audio, _ in parts)
    audio = np.concatenate([np.pad(one, ((0, 0), (0, longest - one.shape[1]), (0, 0))) for one, _ in parts])
    lengths = np.concatenate([count for _, count in parts])
    found = run_whole(loaded, engine, longest, lengths, audio=audio)["codes"]
    np.testing.assert_array_equal(found, arrays["enc_batch_codes"])


# decoding


def test_samples(loaded: Loaded) -> None:
    for match in names(loaded, r"dec_([a-z]+)_nq(\d+)_wav"):
        codes = codes_of(loaded, match[1])[: int(match[2])]
        samples = loaded.codec.decode(codes)
        assert len(samples) == loaded.arrays[match[0].replace("_wav", "_lengths")][0]
        near(samples.T[None], loaded.arrays[match[0]], label=match[0])


def test_stages_of_the_decoder(loaded: Loaded, tmp_path: Path) -> None:
    nodes = loaded.model(DECODER).graph.node
    latents = next(node.output[0] for node in reversed(nodes) if node.name.startswith("/quantizer/"))
    probes = {**ends(loaded, DECODER), LATENTS: latents}
    engine = loaded.probed(DECODER, probes, tmp_path)
    for label in ("rand", "long"):
        codes = codes_of(loaded, label)[:, None].astype(np.int32)
        found = run_whole(loaded, engine, codes.shape[2], codes=codes)
        side = "enc" if label == "long" else "dec"
        near(found[LATENTS].transpose(0, 2, 1), loaded.arrays[f"{side}_{label}_zq"])
        for stage in probes:
            key = f"dec_{label}_{stage}"
            if key in loaded.arrays:
                near(found[stage].transpose(0, 2, 1), loaded.arrays[key], label=key)


def codes_of(loaded: Loaded, label: str) -> Array:
    """[codebooks, T]."""
    codes: Array = loaded.arrays["rand_codes" if label == "rand" else f"enc_{label}_codes"][:, 0]
    return codes


# streaming


def chunkings(loaded: Loaded, frames: int) -> list[list[int]]:
    """Every recorded way to cut, and some that reach beyond the window at once."""
    cuts = [int(match[1]) for match in names(loaded, r"dec_rand_chunk(\d+)_wav")]
    even = [[cut] * (frames // cut) + [frames % cut] * (frames % cut > 0) for cut in (*cuts, frames)]
    return [*even, loaded.arrays["dec_rand_irregular_sizes"].tolist(), [1, frames - 2, 1]]


def test_streams_equal_the_whole(loaded: Loaded) -> None:
    """Far beyond the window, whatever the pieces; to the recorded whole, and nearer to our own."""
    codes = codes_of(loaded, "rand")
    whole, recorded = loaded.codec.decode(codes), loaded.arrays[f"dec_rand_nq{len(codes)}_wav"]
    for sizes in chunkings(loaded, codes.shape[1]):
        with loaded.codec.stream() as stream:
            parts = [stream.feed(codes[:, start:stop]) for start, stop in edges(sizes)]
        near(np.concatenate(parts), whole, REORDERED, str(sizes))
        near(np.concatenate(parts).T[None], recorded, label=str(sizes))


def test_encoding_in_pieces_equals_the_whole(loaded: Loaded) -> None:
    audio, lengths = framed(loaded, loaded.arrays["wav_long"])
    engine = loaded.codec.engine(ENCODER)
    for sizes in chunkings(loaded, audio.shape[1]):
        state = SlidingState(engine, loaded.codec.settings.context)
        if max(sizes) > state.max_frames:
            continue
        parts = [encode_next(loaded, state, audio[:, start:stop]) for start, stop in edges(sizes)]
        np.testing.assert_array_equal(np.concatenate(parts, 2), loaded.arrays["enc_long_codes"], err_msg=str(sizes))
    assert lengths[0] == audio.shape[1]


def test_a_state_stays_as_large_as_it_is(loaded: Loaded) -> None:
    """Many times the capacity of the state: it slides, and equals one that never had to."""
    engine, rng = loaded.codec.engine(DECODER), np.random.default_rng(5)
    settings = loaded.codec.settings
    frames = 3 * (settings.context + SlidingState(engine, settings.context).max_frames) + 7
    codes = rng.integers(0, settings.codebook_size, (settings.codebooks, frames))
    with loaded.codec.stream() as stream:
        before = stream.state.nbytes
        parts = [stream.feed(codes[:, start : start + 11]) for start in range(0, frames, 11)]
        assert stream.state.nbytes == before
    # Context alone decides: a stream that begins one reach of all layers earlier gives the same end.
    stacks = [module for module in loaded.config.decoder if isinstance(module, Transformer)]
    reach = sum(stack.layers * stack.context for stack in stacks)
    if reach + 20 < frames:
        tail = loaded.codec.decode(codes[:, frames - 20 - reach :])
        count = 20 * settings.hop
        near(np.concatenate(parts)[-count:], tail[-count:], REORDERED)


def test_the_ring_of_the_reference(loaded: Loaded) -> None:
    """Its streams see less than the window (specification, 8): the same graphs with a shorter past give just that."""
    stacks = [module for module in (*loaded.config.encoder, *loaded.config.decoder) if isinstance(module, Transformer)]
    windows = {stack.window / stack.rate for stack in stacks}
    if len(windows) != 1 or not next(iter(windows)).is_integer():
        pytest.skip("the windows of the stages are not the same frames")
    window = int(next(iter(windows)))
    codes = codes_of(loaded, "rand")
    frames, hop = codes.shape[1], loaded.config.hop
    cuts = {
        match[1]: [int(match[1])] * (frames // int(match[1])) for match in names(loaded, r"dec_rand_chunk(\d+)_wav")
    }
    recorded = {f"dec_rand_chunk{cut}_wav": sizes for cut, sizes in cuts.items()}
    recorded["dec_rand_irregular_wav"] = loaded.arrays["dec_rand_irregular_sizes"].tolist()
    for key, sizes in recorded.items():
        state, parts = SlidingState(loaded.codec.engine(DECODER), window), []
        for start, stop in edges([*sizes, frames - sum(sizes)]):
            made = np.empty((1, stop - start, hop), np.float32)
            part = np.ascontiguousarray(codes[:, None, start:stop], np.int32)
            state.run(stop - start, {"codes": part, "audio": made}, max(0, window - (stop - start)))
            parts.append(made.reshape(1, 1, -1))
        near(np.concatenate(parts, 2), loaded.arrays[key], label=key)


def test_the_ring_of_the_reference_when_encoding(loaded: Loaded, tmp_path: Path) -> None:
    stacks = [module for module in loaded.config.encoder if isinstance(module, Transformer)]
    if len({stack.window / stack.rate for stack in stacks}) != 1 or stacks[0].window % stacks[0].rate:
        pytest.skip("the windows of the stages are not the same frames")
    window = stacks[0].window // stacks[0].rate
    probes = ends(loaded, ENCODER)
    engine = loaded.probed(ENCODER, {LATENTS: list(probes.values())[-1]}, tmp_path)
    for match in names(loaded, r"enc_([a-z]+)_chunk(\d+)_codes"):
        audio, lengths = framed(loaded, loaded.arrays[f"wav_{match[1]}"])
        cut, frames = int(match[2]), audio.shape[1]
        state, hidden, codes = SlidingState(engine, window), [], []
        for start in range(0, frames, cut):
            part = audio[:, start : start + cut]
            latents = np.empty((1, part.shape[1], loaded.config.quantiser.inputs), np.float32)
            codes.append(encode_next(loaded, state, part, {LATENTS: latents}, max(0, window - part.shape[1])))
            hidden.append(latents)
        found = np.concatenate(codes, 2)[:, :, : lengths[0]]
        np.testing.assert_array_equal(found, loaded.arrays[match[0]], err_msg=match[0])
        key = match[0].replace("_codes", "_hidden")
        if key in loaded.arrays:
            near(np.concatenate(hidden, 1).transpose(0, 2, 1), loaded.arrays[key], label=key)
            assert lengths[0] == loaded.arrays[match[0].replace("_codes", "_lengths")][0]


def encode_next(
    loaded: Loaded,
    state: SlidingState,
    audio: Array,
    further: Mapping[str, Array] | None = None,
    past: int | None = None,
) -> Array:
    """Codes [codebooks, 1, n] of the next frames, all of which are whole."""
    count = audio.shape[1]
    codes = np.empty((loaded.config.quantiser.codebooks, 1, count), np.int32)
    whole = np.array([count], np.int32)
    tensors = {"audio": np.ascontiguousarray(audio), "lengths": whole, "codes": codes, **(further or {})}
    state.run(count, tensors, past)
    return codes


def edges(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    stops = [0, *np.cumsum([size for size in sizes if size]).tolist()]
    return itertools.pairwise(stops)


# blocks


def test_attention_alone(loaded: Loaded, tmp_path: Path) -> None:
    """The first attention of the encoder, cut out of the graph: what it reads is an input, what it gives an output."""
    number, stack = next((i, one) for i, one in enumerate(loaded.config.encoder) if isinstance(one, Transformer))
    path = f"/chain/stages.{number}/layers.0/attn"
    model, spec = loaded.model(ENCODER), loaded.bundle.manifest.graph(ENCODER)
    qkv = next(node for node in model.graph.node if node.name == f"{path}/qkv/MatMul")
    qkv.input[0] = "given"
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("given", onnx.TensorProto.FLOAT, [None, None, stack.width])
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info(f"{path}/out/MatMul:0", onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(tmp_path / "attention.onnx"))
    given = TensorSpec("given", "float32", ("batch", "positions", stack.width))
    mixed = TensorSpec(f"{path}/out/MatMul:0", "float32", ("batch", "positions", stack.width))
    wide = dataclasses.replace(
        spec,
        inputs=(*spec.inputs, given),
        outputs=(*spec.outputs, mixed),
        profiles={"main": {**spec.profiles["main"], "positions": spec.profiles["main"]["frames"]}},
    )
    engine = OpenEngine(tmp_path / "attention.onnx", wide, OrtOptions(threads=1))
    x = loaded.arrays["attn_in"]
    # Filled up to whole frames: the attention is causal, so what is behind the end changes nothing before it.
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % stack.rate), (0, 0)))
    frames = padded.shape[1] // stack.rate
    audio = np.zeros((len(x), frames, loaded.config.hop), np.float32)
    feeds = {"audio": audio, "lengths": np.full(len(x), frames, np.int32), "given": padded}
    found = engine.run({**feeds, **empty_state(engine, len(x))})[mixed.name]
    near(found[:, : x.shape[1]], loaded.arrays["attn_out"])


def test_rotary_embedding_in_halves_is_the_interleaved_one(loaded: Loaded) -> None:
    """With channels moved as `RotaryHalves` moves the rows that make them."""
    arrays, offset = loaded.arrays, int(loaded.arrays["rope_offset"])
    period = next(module.period for module in loaded.config.encoder if not isinstance(module, Patch))
    length, dim = arrays["rope_q_in"].shape[2:]
    cos, sin = (torch.from_numpy(table[offset:]) for table in rotary_tables(dim, offset + length, period))
    for side in "qk":
        given = arrays[f"rope_{side}_in"].transpose(0, 2, 1, 3)  # [B, T, H, D]
        halves = np.concatenate([given[..., ::2], given[..., 1::2]], -1)
        turned = apply_rotary(torch.from_numpy(halves), cos, sin).numpy()
        found = np.stack(np.split(turned, 2, -1), -1).reshape(given.shape).transpose(0, 2, 1, 3)
        near(found, arrays[f"rope_{side}_out"])
