"""The text side of a model directory: which files there are, and what they say beside tokenizer.json.

    tokenizer.json               required; read by `tokenizers`, not here
    tokenizer_config.json        names of special tokens, added tokens, chat template
    special_tokens_map.json      names of special tokens in older checkpoints
    added_tokens.json            added tokens of older checkpoints
    generation_config.json       further ids that end a sequence
    chat_template.jinja          chat template of newer checkpoints; wins over tokenizer_config.json
    additional_chat_templates/   named templates, one *.jinja each
    chat_template.json           chat template beside a processor; used when nothing else has one

Precedence follows `PreTrainedTokenizerBase._from_pretrained` of Transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from lightllm.config.json_text import read_object_if_there
from lightllm.errors import CheckpointError

__all__ = ["TextFiles", "read_text_files"]

STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TextFiles:
    """What a directory says about its tokenizer beside tokenizer.json.

    added_tokens: tokens with ids of their own, by ascending id
    older_tokens: the same of an older checkpoint, where they count only if tokenizer.json lacks them
    named_tokens: `bos_token` and the like
    extra_tokens: special tokens without a name
    """

    added_tokens: tuple[AddedToken, ...] = ()
    older_tokens: tuple[AddedToken, ...] = ()
    named_tokens: dict[str, AddedToken] = field(default_factory=dict)
    extra_tokens: tuple[AddedToken, ...] = ()
    chat_templates: dict[str, str] = field(default_factory=dict)
    generation_eos_ids: tuple[int, ...] = ()
    split_special_tokens: bool = False
    clean_up_spaces: bool = False


def read_text_files(directory: Path) -> TextFiles:
    """Read every optional file; raises CheckpointError for a missing tokenizer.json or a malformed file."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory, so no tokenizer can be read from it")
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{directory} has no tokenizer.json; "
            "lightllm reads the Hugging Face `tokenizers` format, so convert the model's tokenizer first"
        )
    config = read_object_if_there(directory / "tokenizer_config.json")
    older = "added_tokens_decoder" not in config
    if older:
        config = config | read_object_if_there(directory / "special_tokens_map.json")
    named, extra = _named_tokens(directory, config), _extra_tokens(directory, config)
    special = {token.content for token in (*named.values(), *extra)}
    return TextFiles(
        added_tokens=_added_tokens(directory, config),
        older_tokens=_older_tokens(directory / "added_tokens.json", special) if older else (),
        named_tokens=named,
        extra_tokens=extra,
        chat_templates=_chat_templates(directory, config),
        generation_eos_ids=_generation_eos_ids(directory),
        split_special_tokens=bool(config.get("split_special_tokens", False)),
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
    )


def _added_tokens(directory: Path, config: dict[str, Any]) -> tuple[AddedToken, ...]:
    section = config.get("added_tokens_decoder", {})
    try:
        return tuple(_token(section[key]) for key in sorted(section, key=int))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        path = directory / "tokenizer_config.json"
        raise CheckpointError(f"{path}: added_tokens_decoder maps ids to token objects; {error}") from error


def _older_tokens(path: Path, special: set[str]) -> tuple[AddedToken, ...]:
    ids = read_object_if_there(path)
    if not all(isinstance(token_id, int) for token_id in ids.values()):
        raise CheckpointError(f"{path} must map tokens to their ids")
    contents = sorted(ids, key=lambda content: int(ids[content]))
    return tuple(AddedToken(content, special=content in special) for content in contents)


def _named_tokens(directory: Path, config: dict[str, Any]) -> dict[str, AddedToken]:
    """`bos_token` and the like, and the model's own (`image_token`), standard names first."""
    own = [key for key in config if key.endswith("_token") and key not in STANDARD_NAMES]
    own = [key for key in own if isinstance(config[key], str | dict)]
    values = {key: config[key] for key in (*STANDARD_NAMES, *own) if config.get(key) is not None}
    if isinstance(config.get("extra_special_tokens"), dict):
        values |= config["extra_special_tokens"]
    return {key: _special(directory, key, value) for key, value in values.items()}


def _extra_tokens(directory: Path, config: dict[str, Any]) -> tuple[AddedToken, ...]:
    values = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(values, dict):
        return ()
    if not isinstance(values, list):
        raise CheckpointError(f"{directory}: extra_special_tokens must be a list, not {type(values).__name__}")
    return tuple(_special(directory, "extra_special_tokens", value) for value in values)


def _special(directory: Path, key: str, value: Any) -> AddedToken:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise CheckpointError(f"{directory}: {key} must be a string or a token object, not {value!r}")
    if isinstance(value, dict):
        return _token({**value, "special": True})
    return AddedToken(content, special=True, normalized=False)


def _token(fields: dict[str, Any]) -> AddedToken:
    flags = {
        key: bool(fields[key]) for key in ("lstrip", "rstrip", "single_word", "normalized", "special") if key in fields
    }
    return AddedToken(fields["content"], **flags)


def _chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates by name; files win over tokenizer_config.json as a whole."""
    files = {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    if files:
        return {name: _read_template(path) for name, path in files.items()}
    section = config.get("chat_template")
    if section is None:
        section = read_object_if_there(directory / "chat_template.json").get("chat_template")
    if section is None:
        return {}
    if isinstance(section, str):
        return {"default": section}
    if isinstance(section, list) and all(isinstance(item, dict) for item in section):
        section = {item.get("name"): item.get("template") for item in section}
    if isinstance(section, dict) and all(isinstance(text, str) for pair in section.items() for text in pair):
        return section
    raise CheckpointError(f"{directory}: chat_template must be a string or a list of {{name, template}} objects")


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable chat template: {error}") from error


def _generation_eos_ids(directory: Path) -> tuple[int, ...]:
    value = read_object_if_there(directory / "generation_config.json").get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token_id, int) for token_id in ids):
        path = directory / "generation_config.json"
        raise CheckpointError(f"{path}: eos_token_id must be an integer or a list of integers, not {value!r}")
    return tuple(ids)
