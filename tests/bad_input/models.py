"""Bases, tokenizers and adapters that are torn, lie, run code, or belong to something else."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.bad_input.case import Case, Place

Build = Callable[[Place], Sequence[str]]
WEIGHTS = "base/model.safetensors"
INDEX = "base/model.safetensors.index.json"


class Malice:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def spoilt(spoil: Callable[[Place], object], **study: Any) -> Build:
    def build(place: Place) -> Sequence[str]:
        spoil(place)
        return place.study(**study)

    return build


def without(*names: str) -> Build:
    return spoilt(lambda place: [(place.folder / "base" / name).unlink() for name in names])


def written(name: str, content: bytes | str) -> Build:
    return spoilt(lambda place: place.file(f"base/{name}", content))


def edited(name: str, **changes: Any) -> Build:
    return spoilt(lambda place: place.edit_json(f"base/{name}", **changes))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Build:
    def spoil(place: Place) -> None:
        path = place.folder / WEIGHTS
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(found)
        save_file(found, path, metadata={"format": "pt"})

    return spoilt(spoil)


def header(change: Callable[[bytes], bytes]) -> Build:
    return spoilt(lambda place: place.file(WEIGHTS, change((place.folder / WEIGHTS).read_bytes())))


def lying_offsets(content: bytes) -> bytes:
    """Let the header say that a tensor ends a gigabyte behind the file."""
    length = struct.unpack("<Q", content[:8])[0]
    found = json.loads(content[8 : 8 + length])
    name = next(name for name in found if name != "__metadata__")
    found[name]["data_offsets"][1] += 2**30
    body = json.dumps(found).encode()
    return struct.pack("<Q", len(body)) + body + content[8 + length :]


def sharded(files: Mapping[str, object]) -> Build:
    """Write an index that names these files instead of the one file of weights."""

    def spoil(place: Place) -> None:
        shutil.move(place.folder / WEIGHTS, place.file("outside/model.safetensors", ""))
        place.file(INDEX, json.dumps({"metadata": {}, "weight_map": dict(files)}))

    return spoilt(spoil)


def pickles(place: Place) -> None:
    (place.folder / WEIGHTS).unlink()
    place.file("base/pytorch_model.bin", pickle.dumps(Malice(place.folder / "owned")))


def pickles_beside_an_index(place: Place) -> None:
    pickles(place)
    place.file(INDEX, json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))


def remote_code(place: Place) -> None:
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    place.edit_json("base/config.json", auto_map=auto, model_type="evil")
    place.file("base/evil.py", f"open({str(place.folder / 'owned')!r}, 'w')\n")


def tokenizer_code(place: Place) -> None:
    auto = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    place.edit_json("base/tokenizer_config.json", auto_map=auto, tokenizer_class="EvilTokenizer")
    place.file("base/evil.py", f"open({str(place.folder / 'owned')!r}, 'w')\n")


def link_out(place: Place) -> None:
    place.file("outside/model.safetensors", (place.folder / WEIGHTS).read_bytes())
    (place.folder / WEIGHTS).unlink()
    os.symlink(place.folder / "outside" / "model.safetensors", place.folder / WEIGHTS)


def larger_vocabulary(place: Place) -> None:
    path = place.folder / "base/tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"]["beyond"] = 5000
    path.write_text(json.dumps(found))


def no_vocabulary(place: Place) -> None:
    path = place.folder / "base/tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"] = {}
    path.write_text(json.dumps(found))


def hostile_template(place: Place) -> Sequence[str]:
    place.edit_json("base/tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    return place.task(template="chat")


def endless_template(place: Place) -> Sequence[str]:
    place.edit_json("base/tokenizer_config.json", chat_template="{% for i in range(10**12) %}{% endfor %}")
    return place.task(template="chat")


MODELS = (
    Case("a base that is not there", lambda place: place.study(model="./bass"), r"no such folder .*Did you mean base"),
    Case(
        "a base above the study's folder that is not there",
        lambda place: place.study(model="../nowhere/model"),
        r"no such folder",
    ),
    Case(
        "a hub model without a network",
        lambda place: place.study(model="nobody/nothing"),
        r"'nobody/nothing': the hub cannot be reached",
    ),
    Case("a text that names no model", lambda place: place.study(model="gpt 2!"), r"neither a folder nor a hub id"),
    Case(
        "an escape code for a model",
        lambda place: place.study(model="\x1b]0;owned\x07gpt2"),
        r"neither a folder nor a hub id",
    ),
    Case("a file for a base", lambda place: place.study(model=WEIGHTS), r"is a file; give the folder"),
    Case("a base without a configuration", without("config.json"), r"has no config\.json"),
    Case(
        "a configuration that is cut",
        written("config.json", '{"model_type": "gpt'),
        r"config\.json cannot be read as JSON",
    ),
    Case("a deep configuration", written("config.json", "[" * 100_000), r"config\.json cannot be read as JSON"),
    Case("a configuration that is a list", written("config.json", "[]"), r"names no `model_type`"),
    Case("an unknown kind of model", edited("config.json", model_type="gpt17"), r"gpt17"),
    Case("a text for a size", edited("config.json", n_embd="large"), r"configuration.*n_embd|n_embd"),
    Case("a negative size", edited("config.json", n_layer=-1), r"all-linear.*matches no module"),
    Case("a size of 10^30", edited("config.json", n_embd=10**30), r"base"),
    Case("heads that do not divide the width", edited("config.json", n_head=3), r"base"),
    Case("an encoder (BERT) for a base", edited("config.json", model_type="bert"), r"not a causal language model"),
    Case(
        "an encoder and decoder (T5) for a base",
        written("config.json", '{"model_type": "t5"}'),
        r"not a causal language model",
    ),
    Case(
        "a base that is quantised already",
        edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised already",
    ),
    Case("code that comes with a model, not asked for", spoilt(remote_code), r"trust_remote_code: true"),
    Case("no weights", without("model.safetensors"), r"holds no weights; expected model\.safetensors"),
    Case("pickled weights alone", spoilt(pickles), r"pickle files, which can run code and are not opened"),
    Case("an index that names a pickle", spoilt(pickles_beside_an_index), r"pytorch_model\.bin"),
    Case(
        "a pickle under the name of safetensors",
        spoilt(lambda place: place.file(WEIGHTS, pickle.dumps(Malice(place.folder / "owned")))),
        r"model\.safetensors is torn or not a safetensors file",
    ),
    Case("weights that are cut", header(lambda content: content[: len(content) // 2]), r"model\.safetensors is torn"),
    Case("weights of no bytes", header(lambda content: b""), r"model\.safetensors is torn"),
    Case(
        "a header that says it is 2^63 bytes long",
        header(lambda content: struct.pack("<Q", 2**63) + content[8:]),
        r"model\.safetensors is torn",
    ),
    Case("a header that says a tensor goes on behind the file", header(lying_offsets), r"model\.safetensors is torn"),
    Case(
        "a weight of another shape",
        tensors(lambda found: found.update({"transformer.ln_f.weight": torch.zeros(7)})),
        r"ln_f\.weight has shape \(7,\) in the file and \(16,\)",
    ),
    Case(
        "a weight that is missing",
        tensors(lambda found: found.pop("transformer.ln_f.weight")),
        r"1 weights are not in the files .*ln_f\.weight",
    ),
    Case(
        "layers that the configuration does not count",
        edited("config.json", n_layer=1),
        r"layers that config\.json does not count",
    ),
    Case(
        "a shard that is missing",
        sharded({"a": "model-00001-of-00002.safetensors"}),
        r"1 of 1 weight files that .*index\.json names are not in its folder",
    ),
    Case(
        "an index that points outside the folder",
        sharded({"a": "../outside/model.safetensors"}),
        r"\.\./outside/model\.safetensors",
    ),
    Case("an index that points anywhere", sharded({"a": "/etc/passwd"}), r"/etc/passwd"),
    Case("an index of numbers", sharded({"a": 7}), r"7"),
    Case("an index that names nothing", sharded({}), r"names no weight files"),
    Case(
        "an index that is cut",
        spoilt(lambda place: ((place.folder / WEIGHTS).unlink(), place.file(INDEX, '{"weight_map": {'))),
        r"cannot be read as an index",
    ),
    Case("a link out of the model's folder", spoilt(link_out), r"model\.safetensors.*outside"),
    Case("no tokenizer", without("tokenizer.json", "tokenizer_config.json"), r"holds no tokenizer"),
    Case(
        "a tokenizer that is cut",
        written("tokenizer.json", '{"version": "1.0", "model": {'),
        r"tokenizer cannot be read",
    ),
    Case("a tokenizer that is no tokenizer", written("tokenizer.json", "[]"), r"tokenizer cannot be read"),
    Case("a deep tokenizer", written("tokenizer.json", "[" * 100_000), r"tokenizer cannot be read"),
    Case(
        "a tokenizer configuration that is cut", written("tokenizer_config.json", '{"eos'), r"tokenizer cannot be read"
    ),
    Case(
        "a vocabulary larger than the embedding",
        spoilt(larger_vocabulary),
        r"gives ids up to 5000, but the model has 264",
    ),
    Case("an empty vocabulary", spoilt(no_vocabulary), r"no token for plain text"),
    Case(
        "neither padding nor end of sequence",
        edited("tokenizer_config.json", eos_token=..., pad_token=...),
        r"neither a padding nor an end-of-sequence",
    ),
    Case("a chat template that looks for Python", hostile_template, r"chat template"),
    Case("a chat template that does not end", endless_template, r"chat template"),
)


def adapter(spoil: Callable[[Place], object] = lambda place: None, **config: Any) -> Build:
    def build(place: Place) -> Sequence[str]:
        own = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
        place.file("old/adapter_config.json", json.dumps(own | config))
        name = "base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight"
        state = {}
        for layer in range(2):
            state[name.format(layer, "A")] = torch.zeros(2, 16)
            state[name.format(layer, "B")] = torch.zeros(48, 2)
        save_file(state, place.folder / "old/adapter_model.safetensors")
        spoil(place)
        return place.study(arms={"old": {"method": "load", "path": "old"}})

    return build


def adapter_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Build:
    def spoil(place: Place) -> None:
        path = place.folder / "old/adapter_model.safetensors"
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(found)
        save_file(found, path)

    return adapter(spoil)


def renamed(found: dict[str, torch.Tensor]) -> None:
    for name in list(found):
        found[name.replace("transformer.h", "model.layers").replace("c_attn", "q_proj")] = found.pop(name)


def wider(found: dict[str, torch.Tensor]) -> None:
    for name in found:
        found[name] = torch.zeros(2, 32) if "lora_A" in name else torch.zeros(96, 2)


def pickled_adapter(place: Place) -> None:
    (place.folder / "old/adapter_model.safetensors").unlink()
    place.file("old/adapter_model.bin", pickle.dumps(Malice(place.folder / "owned")))


def adapter_link(place: Place) -> None:
    path = place.folder / "old/adapter_model.safetensors"
    place.file("outside/adapter_model.safetensors", path.read_bytes())
    path.unlink()
    os.symlink(place.folder / "outside/adapter_model.safetensors", path)


ADAPTERS = (
    Case(
        "an adapter that is not there",
        lambda place: place.study(arms={"old": {"method": "load", "path": "nowhere"}}),
        r"arms\.old: path: no such folder",
    ),
    Case(
        "a file for an adapter",
        lambda place: place.study(arms={"old": {"method": "load", "path": "rows.jsonl"}}),
        r"arms\.old",
    ),
    Case(
        "a folder of nothing for an adapter",
        lambda place: (place.file("empty/readme", "x"), place.study(arms={"old": {"method": "load", "path": "empty"}}))[
            1
        ],
        r"arms\.old: .*config\.json",
    ),
    Case(
        "a configuration of an adapter that is cut",
        adapter(lambda place: place.file("old/adapter_config.json", '{"r": ')),
        r"adapter_config\.json: expected the JSON",
    ),
    Case(
        "a list for an adapter's configuration",
        adapter(lambda place: place.file("old/adapter_config.json", "[]")),
        r"adapter_config\.json: .*'list'",
    ),
    Case("an adapter of an unknown type", adapter(peft_type="XLORA"), r"type 'XLORA'; LORA"),
    Case("a text for a rank of an adapter", adapter(r="two"), r"r must be a number; found 'two'"),
    Case("a rank that the weights do not have", adapter(r=4), r"says rank 4, the weights have \[2\]"),
    Case(
        "an option that would change the numbers",
        adapter(alpha_pattern={"c_attn": 8}),
        r"the option alpha_pattern=.* cannot be loaded",
    ),
    Case(
        "no weights beside an adapter's configuration",
        adapter(lambda place: (place.folder / "old/adapter_model.safetensors").unlink()),
        r"expected adapter_model\.safetensors",
    ),
    Case(
        "a pickled adapter",
        adapter(pickled_adapter),
        r"adapter_model\.bin is a pickle, which can run code, and is not read",
    ),
    Case(
        "weights of an adapter that are cut",
        adapter(
            lambda place: place.file(
                "old/adapter_model.safetensors", (place.folder / "old/adapter_model.safetensors").read_bytes()[:300]
            )
        ),
        r"not a readable safetensors file",
    ),
    Case("an adapter of another base", adapter_tensors(renamed), r"old.*q_proj"),
    Case("an adapter of a wider base", adapter_tensors(wider), r"old.*shape \(2, 32\)"),
    Case(
        "an extra tensor in an adapter",
        adapter_tensors(lambda found: found.update({"base_model.model.lm_head.weight": torch.zeros(264, 16)})),
        r"lm_head",
    ),
    Case(
        "a lora_A without its lora_B",
        adapter_tensors(lambda found: found.pop("base_model.model.transformer.h.1.attn.c_attn.lora_B.weight")),
        r"lora_B",
    ),
    Case("a link out of an adapter's folder", adapter(adapter_link), r"adapter_model\.safetensors.*outside"),
    Case(
        "targets that match nothing in a base",
        lambda place: place.study(arms={"own": {"method": "lora", "rank": 2, "lr": 1e-3, "targets": ["q_proj"]}}),
        r"arms\.own: target 'q_proj' matches no module",
    ),
)
