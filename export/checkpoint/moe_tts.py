"""MoE-TTS checkpoints: two Qwen3 experts, and optionally a diffusion transformer and a vocoder, in one folder.

In: a folder with `config.json` of model_type "moe_tts", layout "directory" (one Qwen3 folder per expert) or
"single_file" (both experts in one file, told apart by a marker). Out: a frozen `MoeTtsCheckpoint`, checked as a whole.
Does not know: graphs, sampling.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from voxedge.engines.errors import CheckpointError
from voxedge.export.checkpoint.config_file import Section, load_json
from voxedge.export.checkpoint.file_access import path_inside, sibling_root
from voxedge.export.checkpoint.moe_checks import (
    TokenizerFacts,
    check_eos,
    check_experts_agree,
    check_rates,
    check_speech_rows,
    check_stages_agree,
    check_tokenizer,
    read_tokenizer_facts,
)
from voxedge.export.checkpoint.qwen3 import LanguageModel, load_qwen3, parse_qwen3
from voxedge.export.checkpoint.single_file import POSITIONS, MarkerRule, SpeechRows, split_single_file
from voxedge.export.checkpoint.stable_audio import DitCheckpoint, VaeCheckpoint, load_dit, load_vae
from voxedge.export.checkpoint.weight_files import open_weights

Number = TypeVar("Number", int, float)
FINAL_NORMS = ("token", "text", "speech")
DEFAULT_USER_TEMPLATE = "{description}\n{text}"


@dataclass(frozen=True, slots=True)
class SpeechVocabulary:
    """The speech expert's tokens and how an utterance ends."""

    num_tokens: int
    """Codec tokens: ids 0 .. num_tokens - 1 can be decoded to sound."""
    num_rows: int
    """Rows of the speech embedding and head, control rows included."""
    frame_rate: float
    """Speech tokens per second."""
    token_id_offset: int
    """Id of speech token 0 in the merged vocabulary of training."""
    eos_vocab: str
    """Vocabulary of the end token: "text" or "speech"."""
    eos_id: int
    """Id of the end token inside that vocabulary."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Texts that the model was trained with."""

    system: str
    """System turn; empty means that there is none."""
    user_template: str
    """User turn with the placeholders {description} and {text}."""


@dataclass(frozen=True, slots=True)
class MoeTtsCheckpoint:
    """Everything that one MoE-TTS folder holds."""

    text: LanguageModel
    """Text expert; its vocab_size counts the rows that text ids may address."""
    speech: LanguageModel
    """Speech expert; embedding and head have `speech_vocabulary.num_rows` rows."""
    speech_vocabulary: SpeechVocabulary
    """Speech tokens and end token."""
    final_norm: str
    """Whose final norm is applied: "token" (of the token's own expert), "text" or "speech" (one for all tokens)."""
    prompt: Prompt
    """System text and user template."""
    tokenizer_file: Path
    """The text tokenizer's `tokenizer.json`."""
    dit: DitCheckpoint | None
    """Acoustic decoder, if the folder has one."""
    vae: VaeCheckpoint | None
    """Vocoder, if the folder has one."""
    sample_rate: int | None
    """Audio samples per second; None without a vocoder and without an entry in the configuration."""
    latent_rate: float | None
    """Latents per second; None likewise."""
    source_files: tuple[Path, ...]
    """All files that were read, for hashing."""
    speaking: Mapping[str, object] = field(default_factory=dict)
    """How the voice is best spoken with, by the sections of the bundle's settings; see `docs/exporting.md`."""
    words: tuple[str, ...] = ()
    """Words that the voice was trained on; none for a whole language."""
    voices: tuple[str, ...] = ()
    """Descriptions of the voices that it is best at."""


def load_moe_tts(folder: Path) -> MoeTtsCheckpoint:
    """Open a MoE-TTS checkpoint.

    Args:
        folder: holds `config.json`.

    Raises:
        CheckpointError: an option is unknown or unsupported, or parts do not fit each other.
        MissingResourceError: a file is missing.
    """
    config_file = folder / "config.json"
    section = Section(load_json(config_file), str(config_file))
    section.text("model_type", choices=("moe_tts",))
    section.integer("format_version", maximum=1)
    layout = section.text("layout", choices=("directory", "single_file"))
    tokenizer_file = _tokenizer_file(folder, section)
    facts = read_tokenizer_facts(tokenizer_file)
    vocabulary = _vocabulary(section.section("speech"), facts)
    norm = _final_norm(section)
    if layout == "directory":
        text, speech, norm = *_expert_folders(folder, section), norm or "token"
    else:
        text, speech, own_norm = _experts_of_one_file(folder, section, vocabulary, facts)
        norm = _norm_of_one_file(norm, own_norm, section.where)
    check_experts_agree(text, speech, vocabulary.num_rows, section.where)
    check_tokenizer(facts, text, vocabulary.token_id_offset, section.where)
    check_speech_rows(speech, vocabulary.num_tokens, vocabulary.token_id_offset, facts, section.where)
    check_eos(
        vocabulary.eos_vocab, vocabulary.eos_id, text, (vocabulary.num_tokens, vocabulary.num_rows), section.where
    )
    dit, vae = _stages(folder, section)
    checkpoint = MoeTtsCheckpoint(
        text=text,
        speech=speech,
        speech_vocabulary=vocabulary,
        final_norm=norm,
        prompt=_prompt(section),
        tokenizer_file=tokenizer_file,
        dit=dit,
        vae=vae,
        sample_rate=_optional(section, "sample_rate", section.integer, vae.sample_rate if vae else None),
        latent_rate=_optional(section, "latent_rate", section.number, vae.latent_rate if vae else None),
        source_files=_source_files(config_file, tokenizer_file, text, speech, dit, vae),
        speaking=_speaking(section),
        words=section.texts("words"),
        voices=section.texts("voices"),
    )
    section.ignore(("layout", "text_expert", "speech_expert", "speech_tokenizer", "llm_config", "single_file"))
    section.finish()
    check_stages_agree(dit, vae, vocabulary.num_tokens, vocabulary.frame_rate, section.where)
    check_rates(checkpoint.sample_rate, checkpoint.latent_rate, vae, section.where)
    return checkpoint


def _tokenizer_file(folder: Path, section: Section) -> Path:
    default = "tokenizer" if (folder / "tokenizer").is_dir() else section.text("text_expert", "text_expert")
    relative, root = section.text("tokenizer", default), sibling_root(folder)  # a neighbour's tokenizer may be shared
    return path_inside(folder, relative, root, section.where) / "tokenizer.json"


def _vocabulary(section: Section, facts: TokenizerFacts) -> SpeechVocabulary:
    num_tokens = section.integer("num_tokens")
    num_rows = section.integer("num_rows", num_tokens)
    if num_rows < num_tokens:
        raise section.fail("num_rows", f"at least num_tokens = {num_tokens}")
    eos = section.section("eos")
    vocabulary = SpeechVocabulary(
        num_tokens=num_tokens,
        num_rows=num_rows,
        frame_rate=section.number("frame_rate", minimum=1.0),
        token_id_offset=_offset(section, facts),
        eos_vocab=eos.text("vocab", choices=("text", "speech")),
        eos_id=eos.integer("id", minimum=0),
    )
    eos.finish()
    section.finish()
    return vocabulary


def _offset(section: Section, facts: TokenizerFacts) -> int:
    if "token_id_offset" not in section:
        raise CheckpointError(
            f"{section.where}: expected `token_id_offset`, the id of speech token 0: len(tokenizer) = {facts.length} "
            "when training added tokens to the tokenizer, or the rows of the original embedding when it appended rows"
        )
    return section.integer("token_id_offset", minimum=0)


def _final_norm(section: Section) -> str | None:
    if "routing" not in section:
        return None
    routing = section.section("routing")
    norm = routing.text("final_norm", "token", choices=FINAL_NORMS)
    routing.finish()
    return norm


def _norm_of_one_file(configured: str | None, own_norm: bool, where: str) -> str:
    """Without a marked final norm there is only the text expert's; nothing else may be claimed."""
    norm = configured or ("token" if own_norm else "text")
    if norm != "text" and not own_norm:
        raise CheckpointError(
            f'{where}: routing.final_norm is "{norm}", but the file has no final norm marked as the speech expert\'s; '
            'set it to "text"'
        )
    return norm


def _expert_folders(folder: Path, section: Section) -> tuple[LanguageModel, LanguageModel]:
    names = [section.text(key, key) for key in ("text_expert", "speech_expert")]
    text, speech = (load_qwen3(path_inside(folder, name, folder, section.where)) for name in names)
    return text, speech


def _experts_of_one_file(
    folder: Path, section: Section, vocabulary: SpeechVocabulary, facts: TokenizerFacts
) -> tuple[LanguageModel, LanguageModel, bool]:
    config = parse_qwen3(section.raw("llm_config"), f"{section.where}: llm_config")
    weights = open_weights(folder)
    rows = SpeechRows(vocabulary.token_id_offset, vocabulary.num_rows, facts.length)
    rule = _marker_rule(section.section("single_file")) if "single_file" in section else None
    return split_single_file(weights.tensors, rule, config, rows, str(folder), weights.files)


def _marker_rule(section: Section) -> MarkerRule:
    rule = MarkerRule(
        speech_marker=section.text("speech_marker"),
        marker_position=section.text("marker_position", choices=POSITIONS),
        prefix=section.text("prefix", ""),
        text_marker=section.text("text_marker", ""),
        shared=section.texts("shared"),
    )
    section.finish()
    if not rule.speech_marker:
        raise section.fail("speech_marker", "a non-empty text such as _moe_gen")
    return rule


def _prompt(section: Section) -> Prompt:
    prompt = section.section("prompt", {})
    prompt.refuse_unless("enable_thinking", (False,), "speech follows an empty think block")
    result = Prompt(prompt.text("system", ""), prompt.text("user_template", DEFAULT_USER_TEMPLATE))
    prompt.finish()
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(result.user_template) if name is not None}
    except ValueError as error:
        raise prompt.fail("user_template", "a template with balanced braces") from error
    if "text" not in fields or not fields <= {"text", "description"}:
        raise prompt.fail("user_template", "the placeholder {text} and optionally {description}, no others")
    return result


def _speaking(section: Section) -> dict[str, object]:
    """Sections of settings that the checkpoint's authors recommend; their fields are checked with all settings."""
    speaking = section.raw("speaking", {})
    known = ("prompt", "sampling", "diffusion", "windows")
    if not isinstance(speaking, dict) or not all(
        key in known and isinstance(value, dict) for key, value in speaking.items()
    ):
        raise section.fail("speaking", f"objects under the names {', '.join(known)}")
    return speaking


def _optional(section: Section, key: str, read: Callable[[str], Number], default: Number | None) -> Number | None:
    """A field that may be absent."""
    section.ignore((key,))
    return read(key) if key in section else default


def _stages(folder: Path, section: Section) -> tuple[DitCheckpoint | None, VaeCheckpoint | None]:
    overrides = section.raw("diffusion")
    paths = {
        key: path_inside(folder, section.text(key), folder, section.where) for key in ("dit", "vae") if key in section
    }
    dit = load_dit(paths["dit"], overrides) if "dit" in paths else None
    includes_vae = dit is not None and dit.latent_scale is not None
    source = paths.get("vae") or (paths["dit"] if includes_vae else None)
    vae = load_vae(source) if source else None
    if vae is not None and dit is not None and dit.latent_scale is not None:
        vae = replace(vae, scale=dit.latent_scale)  # a vocoder folder of its own does not know the scale
    return dit, vae


def _source_files(
    config_file: Path,
    tokenizer_file: Path,
    text: LanguageModel,
    speech: LanguageModel,
    dit: DitCheckpoint | None,
    vae: VaeCheckpoint | None,
) -> tuple[Path, ...]:
    files = [config_file, tokenizer_file]
    for part in (text, speech, dit, vae):
        files += part.files if part is not None else ()
    return tuple(dict.fromkeys(files))
