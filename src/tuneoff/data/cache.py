"""Tokenised splits on disk: one safetensors file for each combination of data, task and tokenizer.

The file holds its JSON too. An entry is written aside, synced and renamed, so that it is there whole or not at all; two
processes that build the same one write the same bytes. What cannot be read, or does not match its checksum, is built
again. A folder that cannot be written costs time only.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tuneoff.data.tokens import ARRAYS, PROMPT_ARRAYS, PreparedData, Prompts, TokenSplit, hash_splits
from tuneoff.errors import StoreError
from tuneoff.files import on_disk, user_cache, write_synced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 5
"""Raised when the same input would give other tokens, or an entry another form."""

SPLITS = ("train", "validation", "test")
PROMPTS = "prompts"
EXTRA = "extra"
"""Name under which an entry holds its JSON, as bytes: a safetensors header is limited to 100 MB, item names are not."""

log = logging.getLogger(__name__)


def cache_folder(cache: Path | None = None) -> Path:
    """Return the folder of tokenised data: below `cache`, else $TUNEOFF_CACHE, else the user's cache folder."""
    return (cache or user_cache()) / "tokens"


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 (hex) of all of a tokenizer that token ids depend on."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    parts: list[Any] = [
        type(tokenizer).__name__,
        {key: value for key, value in backend.items() if key not in ("padding", "truncation")},  # of its last call
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        tokenizer.chat_template,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_entry(path: Path) -> PreparedData | None:
    """Return what the file holds; none where it is missing, torn or altered."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s): the data is tokenised again", path, error.strerror or error)
        return None
    try:
        arrays = load(content)
        extra = json.loads(arrays.pop(EXTRA).tobytes())
        splits = {name: _split(name, arrays, extra) for name in SPLITS}
        prompts = _prompts(arrays, extra)
        if hash_splits(list(splits.values()), prompts) != extra["sha256"] or _checksum(extra) != extra["checksum"]:
            raise ValueError("the checksum differs")
        samples = tuple((prompt, reference) for prompt, reference in extra["samples"])
        return PreparedData(
            train=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            sha256=extra["sha256"],
            notes=tuple(extra["notes"]),
            cautions=tuple(extra["cautions"]),
            stride_tokens=extra["stride_tokens"],
            samples=samples,
            prompts=prompts,
            classes=tuple(extra["classes"]),
            label_ids=tuple(tuple(ids) for ids in extra["label_ids"]),
        )
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        log.warning("%s is damaged (%s): the data is tokenised again", path, error)
        return None


def _split(name: str, arrays: dict[str, NDArray[Any]], extra: dict[str, Any]) -> TokenSplit:
    return TokenSplit(
        **{array: arrays[f"{name}.{array}"] for array in ARRAYS}, item_names=tuple(extra["item_names"][name])
    )


def _prompts(arrays: dict[str, NDArray[Any]], extra: dict[str, Any]) -> Prompts | None:
    if extra["prompts"] is None:
        return None
    return Prompts(
        **{array: arrays[f"{PROMPTS}.{array}"] for array in PROMPT_ARRAYS},
        ids=tuple(extra["prompts"]["ids"]),
        references=tuple(tuple(texts) for texts in extra["prompts"]["references"]),
    )


def _checksum(extra: dict[str, Any]) -> str:
    rest = {key: value for key, value in extra.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def save_entry(path: Path, data: PreparedData) -> None:
    """Write the entry; where the folder does not allow it, log why and go on."""
    extra: dict[str, Any] = {
        "version": VERSION,
        "sha256": data.sha256,
        "notes": data.notes,
        "cautions": data.cautions,
        "stride_tokens": data.stride_tokens,
        "samples": data.samples,
        "prompts": None if data.prompts is None else {"ids": data.prompts.ids, "references": data.prompts.references},
        "classes": data.classes,
        "label_ids": data.label_ids,
        "item_names": {name: split.item_names for name, split in data.splits().items()},
    }
    extra["checksum"] = _checksum(extra)
    arrays: dict[str, NDArray[Any]] = {
        f"{name}.{array}": values for name, split in data.splits().items() for array, values in split.arrays().items()
    }
    if data.prompts is not None:
        arrays |= {f"{PROMPTS}.{array}": values for array, values in data.prompts.arrays().items()}
    arrays[EXTRA] = np.frombuffer(json.dumps(extra).encode(), dtype=np.uint8)
    try:
        with on_disk(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, save(arrays))
    except StoreError as error:
        log.warning("%s: the next run tokenises the data again", error)
