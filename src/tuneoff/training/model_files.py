"""Where a base model comes from, and whether its local files are whole: looked at before any weight is read."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import tuneoff
from tuneoff.errors import ModelError, did_you_mean
from tuneoff.files import leads_out

DEMO = "demo"
DEMO_FOLDER = Path(tuneoff.__file__).parent / "assets" / "demo_base"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"),
    *("sentencepiece.bpe.model", "merges.txt", "*.tiktoken"),
)
FILE_ENDS = (".json", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".yaml", ".txt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
MAX_HUB_ID = 96
"""Longest id that the hub gives out."""


def resolve(model: str, root: Path) -> Path | str:
    """Return where a base comes from: a local folder or `config.json`, or else a hub id.

    An existing folder is always taken; a text that is written like a path is never sent to the hub.

    Args:
        model: hub id, folder, `config.json` file, or `demo`.
        root: folder that relative paths start from.

    Raises:
        ModelError: a path that does not exist, or a text that is neither a path nor a hub id.
    """
    if model == DEMO:
        return DEMO_FOLDER
    path = root / Path(model).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".json"):
        return path.absolute()
    if path.is_file():
        raise ModelError(f"model {model!r} is a file; give the folder that holds it and its {CONFIG}.")
    if _looks_like_path(model):
        raise ModelError(f"model {model!r}: no such folder ({path.absolute()}).{_nearest(path)}")
    if not HUB_ID.fullmatch(model) or len(model) > MAX_HUB_ID:
        raise ModelError(
            f"model {model!r} is neither a folder nor a hub id such as gpt2 or owner/name.{_nearest(path)}"
        )
    return model


def _looks_like_path(model: str) -> bool:
    if model.startswith((".", "/", "~")) or model.endswith("/") or "\\" in model:
        return True
    return model.count("/") > 1 or ("/" in model and model.endswith(FILE_ENDS))


def _nearest(path: Path) -> str:
    try:
        return did_you_mean(path.name, (entry.name for entry in path.parent.iterdir()))
    except OSError:
        return ""


def check_config_file(source: Path, model: str) -> None:
    """Read a local `config.json` as JSON, for a better message than the library's."""
    path = source / CONFIG if source.is_dir() else source
    _check_links(path.parent, model)
    if not path.is_file():
        if (source / "adapter_config.json").is_file():
            raise ModelError(
                f"model {model!r} is a PEFT adapter, not a base. Name its base here and add the adapter as an arm: "
                f"{{method: load, path: {model}}}."
            )
        raise ModelError(
            f"model {model!r}: the folder {source} has no {CONFIG}. Save the model with `save_pretrained`."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {model!r}: {path} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise ModelError(
            f"model {model!r}: {path} names no `model_type`, so it is not a configuration of Transformers."
        )


def _check_links(folder: Path, model: str) -> None:
    """Refuse a folder that shows files of another one: who made it may not have meant the reader well."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and leads_out(path, folder):
            raise ModelError(
                f"model {model!r}: {path} is a link that leads out of its folder (to {os.path.realpath(path)}), and is "
                "not followed. Copy the file there, or name the folder that it lies in."
            )


def check_tokenizer_files(source: Path, model: str) -> None:
    """Refuse a local base without a tokenizer: Transformers would make an empty one, without a word."""
    if not (source.is_dir() and _any(source, TOKENIZER_FILES)):
        raise ModelError(
            f"model {model!r}: {source} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt, "
            "or tokenizer.model). Copy it there from where the model comes from."
        )


def check_weights(source: Path, model: str) -> None:
    """Refuse a local folder whose weights are missing, pickled or torn, before any of them is read."""
    if not source.is_dir():
        raise ModelError(
            f"model {model!r} is a configuration alone, enough for `tuneoff plan`. To train, give a folder of weights."
        )
    if (source / "adapter_config.json").is_file():
        raise ModelError(
            f"model {model!r}: {source} also holds a PEFT adapter, and which of the two is meant cannot be told. "
            "Move the adapter to a folder of its own."
        )
    files = weight_files(source, model)
    if not files:
        if _any(source, PICKLES):
            raise ModelError(
                f"model {model!r}: {source} holds weights only as pickle files, which can run code and are not opened. "
                "Convert them once with `model.save_pretrained(FOLDER)`, which writes safetensors."
            )
        raise ModelError(f"model {model!r}: {source} holds no weights; expected {WEIGHTS} or {INDEX}.")
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"model {model!r}: {path} is torn or not a safetensors file ({error}). Copy it again."
            ) from None


def weight_files(source: Path, model: str) -> list[Path]:
    """Return the safetensors files of a local folder's weights, in order of name; none where there are none.

    Raises:
        ModelError: an index that cannot be read, or that names a file that is missing or outside the folder.
    """
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    index = source / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ModelError(f"model {model!r}: {index} cannot be read as an index of weights ({error!r})") from None
    missing = [str(name) for name in names if Path(str(name)).name != name or not (source / name).is_file()]
    if not names:
        raise ModelError(f"model {model!r}: {index} names no weight files. Copy it again.")
    if missing:
        raise ModelError(
            f"model {model!r}: {len(missing)} of {len(names)} weight files that {INDEX} names are not in its folder "
            f"({', '.join(missing[:3])}). Copy them there."
        )
    return [source / name for name in names]


def _any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))
