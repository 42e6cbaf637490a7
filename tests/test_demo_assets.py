"""The embedded demo base and the demo data: what the manifest says is so, and the base knows some English."""

import ast
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tuneoff
from tuneoff.data import demo
from tuneoff.errors import DataError

FOLDER = Path(tuneoff.__file__).parent / "assets" / "demo_base"
MAX_BYTES = 10_000_000
MAX_BITS_PER_BYTE = 1.9
"""Measured: 1.78 on the whole held-out books (MANIFEST.json), 1.72 on this passage. Uniform bytes: 8."""
PASSAGE = (
    "One thing was certain, that the white kitten had had nothing to do with it:--it was the black kitten's fault "
    "entirely. For the white kitten had been having its face washed by the old cat for the last quarter of an "
    "hour (and bearing it pretty well, considering); so you see that it couldn't have had any hand in the "
    "mischief.\n\n"
    "The way Dinah washed her children's faces was this: first she held the poor thing down by its ear with one "
    "paw, and then with the other paw she rubbed its face all over, the wrong way, beginning at the nose: and "
    "just now, as I said, she was hard at work on the white kitten, which was lying quite still and trying to "
    "purr--no doubt feeling that it was all meant for its good."
)
"""Lewis Carroll, Through the Looking-Glass (1871): held out of training, public domain."""
SPLITS = ("train", "validation", "test")
TEMPLATE = "### Instruction:\n{}\n\n### Response:\n"


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "MANIFEST.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_manifest_lists_every_file_with_its_hash(manifest: dict[str, Any]) -> None:
    paths = {path.name: path for path in FOLDER.iterdir() if path.name != "MANIFEST.json"}
    listed = manifest["files"]
    assert set(listed) == set(paths)
    for name, path in paths.items():
        content = path.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (listed[name]["bytes"], listed[name]["sha256"])


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_manifest_says_where_the_weights_come_from(manifest: dict[str, Any]) -> None:
    corpus = manifest["corpus"]
    assert len(corpus["books"]) == corpus["num_books"]
    assert {book["licence"] for book in corpus["books"]} == {"public domain"}
    assert set(corpus["held_out"]) < {book["file"] for book in corpus["books"]}
    assert manifest["licence"].startswith("Apache-2.0")
    assert manifest["held_out"]["bits_per_byte"] < MAX_BITS_PER_BYTE
    assert not any(path in manifest["command"] for path in (" /", "~", ":\\"))


def test_tokenizer_is_fast_and_gives_every_text_back(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.pad_token is None
    text = "  A dôme,\n\n\ttabs “quotes” 3.14 日本 \U0001f600 end "
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_base_loads_and_knows_some_english(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    config = model.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(PASSAGE).input_ids]])
    with torch.no_grad():
        nats_per_token = float(model(input_ids=ids, labels=ids).loss)
    bits_per_byte = nats_per_token * (ids.shape[1] - 1) / math.log(2) / len(PASSAGE.encode())
    assert bits_per_byte < MAX_BITS_PER_BYTE


def test_base_computes_in_fp32_unless_asked_otherwise() -> None:
    assert AutoModelForCausalLM.from_pretrained(FOLDER).dtype == torch.float32


def test_splits_do_not_overlap() -> None:
    rows = [row for split in SPLITS for row in demo.generate_demo_rows(split)]
    assert len({tuple(row.items()) for row in rows}) == len(rows)
    assert len({row["instruction"] for row in rows}) == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_the_same_each_time(split: str) -> None:
    rows = demo.generate_demo_rows(split)
    assert rows == demo.generate_demo_rows(split)
    assert len(rows) == demo.SPLIT_SIZES[split]
    assert all(list(row) == ["instruction", "context", "response"] for row in rows)
    assert rows != demo.generate_demo_rows(split, seed=1)


def test_rows_do_not_change_between_versions() -> None:
    """The hash pins the language and the rows: whoever changes them changes every number that the demo printed."""
    content = json.dumps([demo.generate_demo_rows(split) for split in SPLITS])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "7c93b06bea51b7c8"


def test_a_response_follows_the_rules_of_the_language() -> None:
    words = demo.lexicon()
    assert len(set(words.values())) == len(words)
    back = {ossal: english for english, ossal in words.items()}
    for row in demo.generate_demo_rows("test"):
        english = row["instruction"].lower().rstrip(".").split()
        ossal = [back[word] for word in row["response"].lower().rstrip(".").split()]
        assert sorted(ossal) == sorted(word for word in english if word != "the")
        subject, thing = (phrase.split() for phrase in " ".join(english).split("the ")[1:])
        assert ossal[0] == subject[-2]
        assert ossal[-1] == subject[-1]
        assert set(ossal[-1 - len(thing) : -1]) == set(thing)


def test_every_training_word_is_seen_and_rows_are_short(tokenizer: Any) -> None:
    rows = demo.generate_demo_rows("train")
    seen = {word for row in rows for word in row["response"].lower().rstrip(".").split()}
    assert seen == set(demo.lexicon().values())
    lengths = [
        len(tokenizer(TEMPLATE.format(row["instruction"])).input_ids) + len(tokenizer(row["response"]).input_ids) + 1
        for row in rows
    ]
    assert max(lengths) <= 48


def test_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match="Did you mean test"):
        demo.generate_demo_rows("tests")


def test_the_generator_needs_no_torch() -> None:
    tree = ast.parse(Path(demo.__file__).read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert modules <= {"itertools", "random", "collections.abc", "functools", "tuneoff.errors"}
