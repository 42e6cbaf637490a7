"""Finds and reads base models and tokenizers, and refuses those that would give wrong numbers without a word.

Weights come from safetensors alone: nothing is unpickled, and no code that comes with a model runs unless asked for.
"""

import copy
import hashlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tuneoff.errors import ModelError, StudyError
from tuneoff.study.shapes import known_shape
from tuneoff.training.activations import fuse_activations
from tuneoff.training.loaded import check_loaded, without_head
from tuneoff.training.model_errors import explained
from tuneoff.training.model_files import (
    CONFIG,
    check_config_file,
    check_tokenizer_files,
    check_weights,
    resolve,
    weight_files,
)
from tuneoff.training.model_files import DEMO as DEMO
from tuneoff.training.quantise import quantise

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONNECT_S = 5.0
"""How long the hub may take to answer a call; the client's own default is twice that, six times over."""


def load_config(
    model: str,
    root: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    *,
    allow_shape: bool = False,
) -> "PreTrainedConfig":
    """Return the configuration of a causal language model.

    Args:
        model: hub id, folder, `config.json` file, or `demo`.
        root: folder that relative paths start from.
        revision: commit, tag or branch on the hub.
        trust_remote_code: run Python code that comes with the model.
        allow_shape: take a shape that ships with the package before asking the hub; enough for planning.

    Raises:
        ModelError: not found, not readable, or not a causal language model.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    source = resolve(model, root)
    shape = known_shape(model) if allow_shape and isinstance(source, str) else None
    if isinstance(source, Path):
        check_config_file(source, model)
    with quiet(), explained(model, "configuration"):
        if shape is not None:
            config: PreTrainedConfig = CONFIG_MAPPING[shape["model_type"]].from_dict(shape)
        else:
            config = AutoConfig.from_pretrained(
                str(source),
                revision=revision,
                trust_remote_code=trust_remote_code,
                local_files_only=_cache_alone(source),
            )
    _check_causal(config, model)
    return config


def _check_causal(config: "PreTrainedConfig", model: str) -> None:
    """Refuse models that do not predict the next token from those before it.

    Transformers puts a causal head on BERT and its kin, too; their attention looks ahead unless `is_decoder` is set.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    custom = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    causal = custom or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        causal = False
    if not causal or getattr(config, "is_encoder_decoder", False):
        names = ", ".join(getattr(config, "architectures", None) or ()) or kind
        raise ModelError(
            f"model {model!r} is not a causal language model (found {names}). "
            "Use a decoder that predicts the next token, such as GPT-2, Llama, Qwen or Mistral."
        )


def check_context(config: "PreTrainedConfig", max_length: int, num_virtual_tokens: int = 0) -> None:
    """Refuse sequences that are longer than the model's context.

    Args:
        config: the model's.
        max_length: tokens of the longest sequence.
        num_virtual_tokens: positions that a method puts before every sequence.

    Raises:
        StudyError: together they are above the number of positions.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(context, int) and max_length + num_virtual_tokens > context:
        before = f" with {num_virtual_tokens} virtual tokens before it" if num_virtual_tokens else ""
        what = "Lower task.max_length or num_virtual_tokens." if num_virtual_tokens else "Lower it."
        raise StudyError(
            f"task.max_length: {max_length}{before} is above the model's context of {context} tokens. {what}"
        )


def load_tokenizer(
    model: str, root: Path, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Return the base's tokenizer. One without a padding token pads with EOS (see `tokenizer_notes`).

    Raises:
        ModelError: no tokenizer, neither padding nor EOS, or more ids than the model has embeddings.
    """
    from transformers import AutoTokenizer

    config = load_config(model, root, revision, trust_remote_code)
    source = resolve(model, root)
    if isinstance(source, Path):
        check_tokenizer_files(source, model)
    with quiet(), explained(model, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(source),
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=_cache_alone(source),
        )
        vocabulary = tokenizer.get_vocab()
    rows = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(vocabulary.values(), default=-1)
    if largest < 1:
        raise ModelError(
            f"model {model!r}: its tokenizer has an empty vocabulary. Copy its files from where the model comes from."
        )
    if isinstance(rows, int) and largest >= rows:
        raise ModelError(
            f"model {model!r}: its tokenizer gives ids up to {largest}, but the model has {rows} embeddings. "
            "Use the tokenizer that belongs to the model."
        )
    if not tokenizer("The cat sat on a mat.", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"model {model!r}: its tokenizer has no token for plain text. "
            "Copy its files from where the model comes from."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"model {model!r}: its tokenizer has neither a padding nor an end-of-sequence token. "
                'Name one in tokenizer_config.json, such as "eos_token": "</s>".'
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_notes(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """Return what a reader of the results should know about the tokenizer."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return (f"the tokenizer has no padding token of its own; its EOS {tokenizer.eos_token!r} fills up, masked",)
    return ()


def load_base(
    model: str,
    root: Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: "torch.dtype | None" = None,
    *,
    num_classes: int = 0,
    has_head: bool = False,
    quantize: str = "none",
    is_shape_alone: bool = False,
) -> "PreTrainedModel":
    """Return the base model on the CPU, in evaluation mode.

    Args:
        model: hub id, folder, or `demo`.
        root: folder that relative paths start from.
        revision: commit, tag or branch on the hub.
        trust_remote_code: run Python code that comes with the model.
        dtype: type of the weights; none is fp32.
        num_classes: of a sequence classifier on this base, with a new head (see `heads.draw_head`); 0 is the causal
            language model.
        has_head: the classifier's head must be in the files, too.
        quantize: type in which its frozen linear layers are held, from `dtype`: none, nf4 or int8 (see `quantise`).
        is_shape_alone: read the names and shapes in the files alone, for what is wrong with them; the model that is
            returned is on the meta device.

    Raises:
        UnsupportedError: nf4 without bitsandbytes.
        ModelError: not found, not causal, quantised, not in safetensors, torn, or not fitting the configuration.
    """
    import torch

    config = load_config(model, root, revision, trust_remote_code)
    if num_classes:
        config.num_labels = num_classes
    source = resolve(model, root)
    _check_source(config, source, model)
    more: dict[str, Any] = {"device_map": "meta"} if is_shape_alone else {}
    more |= {"revision": revision, "trust_remote_code": trust_remote_code}
    base, found = _read_files(source, config, model, num_classes, dtype or torch.float32, more)
    if num_classes and not has_head:
        found = without_head(found, base)
    check_loaded(base, found, model)
    if is_shape_alone:
        return base
    fuse_activations(base)
    if quantize != "none":
        quantise(base, quantize)
    return base


def _read_files(
    source: Path | str,
    config: "PreTrainedConfig",
    model: str,
    num_classes: int,
    dtype: "torch.dtype",
    more: dict[str, Any],
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Return the model and what its loading found; `more` is what Transformers is told beside."""
    # Else a remote service converts a hub model that has only pickles, to weights of another commit than the record's.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    with quiet(progress=isinstance(source, str)), explained(model, "weights"):
        loaded: Any = _auto_class(num_classes).from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            local_files_only=_cache_alone(source),
            use_safetensors=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **more,
        )
    return loaded[0], dict(loaded[1])


def _check_source(config: "PreTrainedConfig", source: Path | str, model: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"model {model!r}: its weights are quantised already. Use the original weights; an arm quantises them by "
            "itself (`quantize: nf4`)."
        )
    if isinstance(source, Path):
        check_weights(source, model)


def _auto_class(num_classes: int) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if num_classes else AutoModelForCausalLM


def shape_only(
    config: "PreTrainedConfig", trust_remote_code: bool = False, *, num_classes: int = 0
) -> "PreTrainedModel":
    """Return the model on the meta device: shapes, names and ties as in the real one, and no weights.

    Args:
        config: of the base.
        trust_remote_code: run Python code that comes with the model.
        num_classes: of a sequence classifier; 0 is the causal language model.

    Raises:
        ModelError: a configuration that no model can have.
    """
    import torch

    if num_classes:
        config = copy.deepcopy(config)
        config.num_labels = num_classes
    with quiet(), explained(config.name_or_path or config.model_type, "configuration"), torch.device("meta"):
        model: PreTrainedModel = _auto_class(num_classes).from_config(config, trust_remote_code=trust_remote_code)
    return model


def fingerprint(model: str, root: Path, revision: str | None = None, *, is_checked: bool = False) -> str:
    """Return what tells a base from every other: sha256 of a local one's configuration and weights, or its hub commit.

    Args:
        model: hub id, folder, or `demo`.
        root: folder that relative paths start from.
        revision: of a hub model.
        is_checked: whether the form of the weights' files is checked elsewhere; that maps them into memory.

    Raises:
        ModelError: not found, or without weights.
    """
    source = resolve(model, root)
    if isinstance(source, str):
        from huggingface_hub import hf_hub_download

        with quiet(), explained(model, "configuration"):
            cached = hf_hub_download(source, CONFIG, revision=revision, local_files_only=_cache_alone(source))
            return Path(cached).parent.name  # .../snapshots/COMMIT/config.json
    check_config_file(source, model)
    if not is_checked:
        check_weights(source, model)
    total = hashlib.sha256()
    for path in (source / CONFIG, *weight_files(source, model)):
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _cache_alone(source: Path | str) -> bool:
    """Whether a hub model can only come from the cache.

    Without a network the hub's client tries again for half a minute for each file before it looks there.
    """
    return isinstance(source, str) and not _hub_is_reachable()


@cache
def _hub_is_reachable() -> bool:
    """Whether the hub takes a connection; behind a proxy the client itself has to find out."""
    from huggingface_hub.constants import ENDPOINT

    hub = urlsplit(ENDPOINT)
    if getproxies():
        return True
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname or "", port), timeout=CONNECT_S).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def quiet(progress: bool = False) -> Iterator[None]:
    """Within the context Transformers and the hub's client log errors alone, unless TRANSFORMERS_VERBOSITY is set.

    Args:
        progress: leave progress bars on (a download from the hub is long).
    """
    from huggingface_hub.utils import logging as client
    from transformers.utils import logging as library

    asked = "TRANSFORMERS_VERBOSITY" in os.environ
    levels, bars = (library.get_verbosity(), client.get_verbosity()), library.is_progress_bar_enabled()
    if not asked:
        library.set_verbosity(logging.ERROR)
        client.set_verbosity(logging.ERROR)
    if bars and not (progress or asked):
        library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library.set_verbosity(levels[0])
        client.set_verbosity(levels[1])
        if bars:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]
