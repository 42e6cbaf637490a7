"""Bases and tokenizers: found, read, and refused in one sentence where they would give wrong numbers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from tuneoff.errors import ModelError, StudyError
from tuneoff.methods.base import num_parameters
from tuneoff.study.shapes import known_models, known_shape
from tuneoff.training import models
from tuneoff.training.model_files import DEMO_FOLDER, resolve

NUM_WORDS = 32


def save_tokenizer(folder: Path, num_words: int = NUM_WORDS, **special: str) -> None:
    words = {f"w{index}": index for index in range(num_words - 1)} | {"</s>": num_words - 1}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), **special).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny base, which tests copy."""
    folder = tmp_path_factory.mktemp("base") / "tiny-gpt2"
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=NUM_WORDS, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, eos_token="</s>")
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "tiny-gpt2")


def set_config(base: Path, **values: object) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **kwargs)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in caught.value.message
    return caught.value.message


class TestResolve:
    def test_a_relative_folder_starts_from_the_root(self, base: Path) -> None:
        assert resolve("tiny-gpt2", base.parent) == base
        assert resolve("./tiny-gpt2", base.parent) == base
        assert resolve(str(base), Path("/")) == base

    def test_demo_is_the_folder_in_the_package(self, tmp_path: Path) -> None:
        assert resolve("demo", tmp_path) == DEMO_FOLDER

    @pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "meta-llama/Meta-Llama-3-8B-Instruct"])
    def test_hub_ids_pass(self, name: str, tmp_path: Path) -> None:
        assert resolve(name, tmp_path) == name

    @pytest.mark.parametrize("name", ["./tiny-gpt", "/no/where", "~/no-such", "a/b/c", "x/config.json", "x\\y", "x/"])
    def test_what_looks_like_a_path_is_never_sent_to_the_hub(self, name: str, tmp_path: Path) -> None:
        assert "no such folder" in refused(resolve, name, tmp_path)

    def test_the_nearest_folder_is_offered(self, base: Path) -> None:
        assert "Did you mean tiny-gpt2?" in refused(resolve, "./tiny-gpt", base.parent)

    @pytest.mark.parametrize("name", ["two words", "a:b", "-x", "x" * 97])
    def test_neither_a_path_nor_a_hub_id(self, name: str, tmp_path: Path) -> None:
        assert "neither a folder nor a hub id" in refused(resolve, name, tmp_path)

    def test_a_weight_file_is_not_a_folder(self, base: Path) -> None:
        assert "give the folder" in refused(resolve, "tiny-gpt2/model.safetensors", base.parent)


class TestConfig:
    def test_a_config_file_alone_will_do(self, base: Path) -> None:
        assert models.load_config("tiny-gpt2/config.json", base.parent).n_layer == 2

    def test_a_known_shape_needs_no_hub(self, tmp_path: Path) -> None:
        for name in known_models():
            assert models.load_config(name, tmp_path, allow_shape=True).vocab_size == known_shape(name)["vocab_size"]

    def test_a_folder_without_config(self, base: Path) -> None:
        (base / "config.json").unlink()
        assert "has no config.json" in refused(models.load_config, str(base), base)

    def test_an_adapter_is_not_a_base(self, base: Path) -> None:
        (base / "config.json").rename(base / "adapter_config.json")
        assert "method: load" in refused(models.load_config, str(base), base)

    @pytest.mark.parametrize("text", ["{bad", "[]", "{}", '{"model_type": 3}', "\udcff"])
    def test_a_broken_config(self, text: str, base: Path) -> None:
        (base / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert "config.json" in refused(models.load_config, str(base), base)

    def test_an_unknown_architecture(self, base: Path) -> None:
        set_config(base, model_type="nonesuch")
        assert "nonesuch" in refused(models.load_config, str(base), base)

    @pytest.mark.parametrize("config", [BertConfig, T5Config, ViTConfig])
    def test_not_causal(self, config: Any, tmp_path: Path) -> None:
        config(architectures=["SomeModel"]).save_pretrained(tmp_path)
        message = refused(models.load_config, str(tmp_path), tmp_path)
        assert "not a causal language model (found SomeModel)" in message

    def test_bert_as_a_decoder_is_causal(self, tmp_path: Path) -> None:
        BertConfig(is_decoder=True).save_pretrained(tmp_path)
        assert models.load_config(str(tmp_path), tmp_path).is_decoder

    def test_code_of_its_own_is_not_run(self, base: Path) -> None:
        set_config(base, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
        (base / "own.py").write_text(f"open({str(base / 'ran')!r}, 'w')")
        assert "trust_remote_code: true" in refused(models.load_config, str(base), base)
        assert not (base / "ran").exists()

    def test_context(self, base: Path) -> None:
        config = models.load_config(str(base), base)
        models.check_context(config, 32)
        with pytest.raises(StudyError, match=r"task\.max_length: 33 is above the model's context of 32"):
            models.check_context(config, 33)


class TestShape:
    def test_ties_are_counted_once(self, base: Path) -> None:
        shape = models.shape_only(models.load_config(str(base), base))
        real = models.load_base(str(base), base)
        assert num_parameters(shape) == num_parameters(real)
        assert {parameter.device.type for parameter in shape.parameters()} == {"meta"}

    @pytest.mark.parametrize("values", [{"n_head": 3}, {"n_head": 0}, {"n_embd": -16}, {"n_embd": "x"}])
    def test_an_impossible_shape(self, values: dict[str, object], base: Path) -> None:
        set_config(base, **values)
        assert "configuration" in refused(lambda: models.shape_only(models.load_config(str(base), base)))


class TestBase:
    def test_loads_in_the_type_that_was_asked_for(self, base: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for dtype in (None, torch.bfloat16):
            model = models.load_base("tiny-gpt2", base.parent, dtype=dtype)
            assert model.dtype == (dtype or torch.float32)
            assert model.lm_head.weight is model.transformer.wte.weight
            assert not model.training
        assert capfd.readouterr() == ("", "")

    def test_a_config_alone_cannot_be_trained(self, base: Path) -> None:
        assert "tuneoff plan" in refused(models.load_base, str(base / "config.json"), base)

    def test_no_weights(self, base: Path) -> None:
        (base / "model.safetensors").unlink()
        assert "holds no weights" in refused(models.load_base, str(base), base)

    def test_pickles_are_not_opened(self, base: Path) -> None:
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
        message = refused(models.load_base, str(base), base)
        assert "only as pickle files" in message
        assert "save_pretrained" in message

    @pytest.mark.parametrize("num_bytes", [0, 5, 500, -10])
    def test_torn_weights(self, num_bytes: int, base: Path) -> None:
        path = base / "model.safetensors"
        path.write_bytes(path.read_bytes()[:num_bytes])
        assert "torn or not a safetensors file" in refused(models.load_base, str(base), base)

    def test_a_missing_shard(self, base: Path) -> None:
        GPT2LMHeadModel.from_pretrained(base).save_pretrained(base, max_shard_size="20kB")
        (base / "model.safetensors").unlink(missing_ok=True)
        models.load_base(str(base), base)
        shards = sorted(base.glob("model-*.safetensors"))
        assert len(shards) > 1
        shards[-1].unlink()
        message = refused(models.load_base, str(base), base)
        assert f"1 of {len(shards)} weight files" in message
        assert shards[-1].name in message

    def test_an_index_may_not_leave_the_folder(self, base: Path) -> None:
        (base / "model.safetensors").rename(base.parent / "other.safetensors")
        index = {"weight_map": {"transformer.wte.weight": "../other.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "../other.safetensors" in refused(models.load_base, str(base), base)

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {}}'])
    def test_a_broken_index(self, text: str, base: Path) -> None:
        (base / "model.safetensors").unlink()
        (base / "model.safetensors.index.json").write_text(text)
        assert "model.safetensors.index.json" in refused(models.load_base, str(base), base)

    def test_shapes_that_do_not_fit(self, base: Path) -> None:
        set_config(base, n_embd=32)
        message = refused(models.load_base, str(base), base)
        assert "28 weights do not fit config.json" in message
        assert "has shape (48,) in the file and (96,)" in message

    def test_weights_that_would_start_at_random(self, base: Path) -> None:
        set_config(base, n_layer=3)
        assert "12 weights are not in the files" in refused(models.load_base, str(base), base)

    def test_an_untied_head_that_is_not_there(self, base: Path) -> None:
        set_config(base, tie_word_embeddings=False)
        assert "lm_head.weight" in refused(models.load_base, str(base), base)

    def test_a_model_cut_short(self, base: Path) -> None:
        set_config(base, n_layer=1)
        assert "would be cut short" in refused(models.load_base, str(base), base)

    def test_a_head_of_another_task_is_left_out_and_said(self, base: Path, caplog: pytest.LogCaptureFixture) -> None:
        from safetensors.torch import load_file, save_file

        path = base / "model.safetensors"
        save_file(load_file(path) | {"score.weight": torch.zeros(2, 16)}, path, metadata={"format": "pt"})
        models.load_base(str(base), base)
        assert "score.weight" in caplog.text

    def test_quantised_weights(self, base: Path) -> None:
        set_config(base, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
        assert "quantised" in refused(models.load_base, str(base), base)

    def test_an_adapter_beside_the_weights(self, base: Path) -> None:
        (base / "adapter_config.json").write_text("{}")
        assert "also holds a PEFT adapter" in refused(models.load_base, str(base), base)


class TestTokenizer:
    def test_eos_pads_where_there_is_nothing_else_and_it_is_said(self, base: Path) -> None:
        tokenizer = models.load_tokenizer(str(base), base)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == NUM_WORDS - 1
        assert "EOS '</s>'" in models.tokenizer_notes(tokenizer)[0]

    def test_padding_of_its_own(self, base: Path) -> None:
        save_tokenizer(base, pad_token="w1", eos_token="</s>")
        tokenizer = models.load_tokenizer(str(base), base)
        assert tokenizer.pad_token_id == 1
        assert models.tokenizer_notes(tokenizer) == ()

    def test_no_tokenizer(self, base: Path) -> None:
        (base / "tokenizer.json").unlink()
        assert "holds no tokenizer" in refused(models.load_tokenizer, str(base), base)
        assert "holds no tokenizer" in refused(models.load_tokenizer, str(base / "config.json"), base)

    def test_neither_padding_nor_eos(self, base: Path) -> None:
        save_tokenizer(base)
        assert "neither a padding nor an end-of-sequence" in refused(models.load_tokenizer, str(base), base)

    def test_more_ids_than_embeddings(self, base: Path) -> None:
        save_tokenizer(base, NUM_WORDS + 1, eos_token="</s>")
        assert f"ids up to {NUM_WORDS}, but the model has {NUM_WORDS} embeddings" in refused(
            models.load_tokenizer, str(base), base
        )

    @pytest.mark.parametrize("text", ["", "{bad", "{}", '{"model": 3}'])
    def test_a_broken_tokenizer(self, text: str, base: Path) -> None:
        (base / "tokenizer.json").write_text(text)
        assert "tokenizer" in refused(models.load_tokenizer, str(base), base)


class TestFingerprint:
    def test_depends_on_configuration_and_weights_alone(self, base: Path) -> None:
        first = models.fingerprint(str(base), base)
        (base / "README.md").write_text("other")
        assert models.fingerprint("tiny-gpt2", base.parent) == first
        assert len(first) == 64
        set_config(base, resid_pdrop=0.2)
        second = models.fingerprint(str(base), base)
        path = base / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        assert len({first, second, models.fingerprint(str(base), base)}) == 3


TRANSPORT = import_module(errors.Response.__module__.partition(".")[0])
"""The library that the hub's client speaks HTTP with."""


def hub_error(name: str, status: int) -> Exception:
    request = TRANSPORT.Request("GET", "https://huggingface.co/api/models/owner/name")
    answer = TRANSPORT.Response(status, request=request)
    error: Exception = getattr(errors, name)(f"{status} Client Error", response=answer)
    return error


HUB_ERRORS = [
    ("GatedRepoError", 403, "Accept its conditions on https://huggingface.co/owner/name"),
    ("GatedRepoError", 401, "restricted (401)"),
    ("RepositoryNotFoundError", 404, "no such model (404)"),
    ("RepositoryNotFoundError", 401, "if it is private, log in"),
    ("RevisionNotFoundError", 404, "not the revision"),
    ("HfHubHTTPError", 401, "valid token (401)"),
    ("HfHubHTTPError", 403, "may not read it (403)"),
    ("HfHubHTTPError", 404, "no such model (404)"),
    ("HfHubHTTPError", 429, "fewer requests (429)"),
    ("HfHubHTTPError", 503, "answered with an error (503)"),
]


class TestHub:
    """The hub's own error classes, raised where the hub's client raises them."""

    @pytest.mark.parametrize(("name", "status", "remedy"), HUB_ERRORS)
    @pytest.mark.parametrize("wrapper", [None, OSError, errors.LocalEntryNotFoundError])
    def test_each_error_names_its_remedy(
        self,
        name: str,
        status: int,
        remedy: str,
        wrapper: type[Exception] | None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            if wrapper is None:
                raise hub_error(name, status)
            raise wrapper("something went wrong") from hub_error(name, status)

        monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
        assert remedy in refused(models.load_config, "owner/name", tmp_path)

    def test_no_network(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """The client itself, offline and with an empty cache."""
        for call in (models.load_config, models.load_tokenizer, models.load_base, models.fingerprint):
            message = refused(call, "owner/name", tmp_path)
            assert "the hub cannot be reached" in message
            assert "--set model=FOLDER" in message
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_an_unreachable_hub_is_not_asked_again_and_again(self, tmp_path: Path) -> None:
        """A name that resolves nowhere (RFC 6761), in a process whose client is not in offline mode."""
        code = (
            "import time, transformers.models.gpt2\n"
            "from pathlib import Path; from tuneoff.training.models import load_config\n"
            "started = time.monotonic()\n"
            "try: load_config('owner/name', Path())\n"
            "except Exception as error: print(time.monotonic() - started, error)"
        )
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith(("offline", "_proxy"))}
        environment = kept | {"HF_ENDPOINT": "https://hub.invalid", "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        seconds, message = done.stdout.split(maxsplit=1)
        assert "the hub cannot be reached" in message
        assert done.stderr == ""
        assert float(seconds) < 15  # the client alone waits 23 s between its calls

    @pytest.mark.parametrize("error", [ConnectionError(), TimeoutError(), TRANSPORT.ConnectError("x")])
    def test_a_broken_connection(self, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
        assert "cannot be reached" in refused(models.load_config, "owner/name", tmp_path)

    @pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory")])
    def test_out_of_memory_is_not_the_models_fault(
        self, error: Exception, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
        with pytest.raises(type(error)):
            models.load_tokenizer(str(base), base)
