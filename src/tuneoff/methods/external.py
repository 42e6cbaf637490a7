"""Any method of the PEFT library, by its own configuration: IA3, AdaLoRA, VeRA, LoHa, LoKr, OFT, BOFT and the rest.

Each computes what PEFT computes and is described in its paper, which PEFT's documentation names. Here it is put on a
model, seeded, saved, merged and taken out like every other method. PEFT's layers stand in the Transformers model
itself, so that model is what is trained and called.

Departures from PEFT: what is trained is held in fp32. Dropout is drawn by this package's masks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods.base import AdaptedModel, check_same_names, copy_tensors, one_generator
from tuneoff.methods.external_adalora import AdaLora
from tuneoff.methods.external_config import ADALORA, PROMPTS, explained, read_config, silent
from tuneoff.methods.soft_prompt import PromptModel, check_room
from tuneoff.methods.surgery import swap

PREFIX = "base_model.model."
"""What PEFT's wrapper puts before the names of the model that it holds."""
ENCODER_NAME = "prompt_encoder"
"""PEFT's name of what makes virtual tokens."""
COUNTER = ".ranknum."
"""AdaLoRA's rank, which PEFT holds as a parameter."""
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class _Held:
    """A tensor of the base, as it was before PEFT."""

    tensor: Tensor
    address: int
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Held":
        return cls(tensor, tensor.data_ptr(), tensor._version)

    @property
    def is_untouched(self) -> bool:
        return self.tensor.data_ptr() == self.address and self.tensor._version == self.version


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


class ExternalPrompt(PromptModel):
    """A model with virtual tokens whose embeddings PEFT's encoder makes (P-tuning), or holds (prompt tuning)."""

    def __init__(self, module: nn.Module, peft_model: Any) -> None:
        (config,) = peft_model.peft_config.values()
        self.peft_model = peft_model
        super().__init__(module, _Encoder(peft_model), ENCODER_NAME, config.num_virtual_tokens)

    def write_peft(self, folder: Path, base_name: str, head: Mapping[str, Tensor] | None = None) -> None:
        """Write a PEFT adapter folder (see `ExternalModel.write_peft`); it holds what the encoder made."""
        _write_peft(self.peft_model, folder, base_name, head, "base_model.")


class _Encoder(nn.Embedding):
    """PEFT's prompt encoder, looked at as the embeddings (V, D) that it makes."""

    def __init__(self, peft_model: Any) -> None:
        nn.Module.__init__(self)
        self.default = peft_model.prompt_encoder["default"]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        ids = torch.arange(self.default.embedding.num_embeddings, device=self.default.embedding.weight.device)
        made: Tensor = self.default(ids[None])
        return made[0]


class ExternalModel(AdaptedModel):
    """A model with a PEFT method in it.

    Args:
        module: the Transformers model, PEFT's layers in it.
        peft_model: PEFT's wrapper around it.
        base: ids of the tensors that were the base's.
        schedule: of AdaLoRA.
    """

    def __init__(self, module: nn.Module, peft_model: Any, base: set[int], schedule: AdaLora | None = None) -> None:
        super().__init__(module)
        self.peft_model = peft_model
        self.matched = tuple(self._tuner_layers())
        self._schedule = schedule
        self._trained = tuple(name for name, p in peft_model.named_parameters() if p.requires_grad)
        in_base = {name: p for name, p in peft_model.named_parameters() if p.requires_grad and id(p) in base}
        self._base_start = {name: parameter.detach().clone() for name, parameter in in_base.items()}
        seen = {id(parameter) for parameter in self._parameters().values()} | base
        self._kept = []
        for name, tensor in peft_model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                self._kept.append(name)
        self._merged: list[tuple[Tensor, Tensor]] | None = None

    def _tuner_layers(self) -> dict[str, Any]:
        """Return PEFT's layers by name, those within another one left out."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        kinds = (BaseTunerLayer, ModulesToSaveWrapper)
        found: dict[str, Any] = {}
        for name, layer in self.module.named_modules():
            if isinstance(layer, kinds) and not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = layer
        return found

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = dict(self.peft_model.named_parameters())
        return {name: named[name] for name in self._trained}

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return what PEFT left trainable, by its name in the Transformers model."""
        return {name.removeprefix(PREFIX): parameter for name, parameter in self._parameters().items()}

    def state_dict(self, member: int = 0) -> dict[str, Tensor]:
        """Return what PEFT added, also what it does not train (random projections, masks, counters)."""
        own = self.peft_model.state_dict(keep_vars=True)
        return {name.removeprefix(PREFIX): own[name].detach() for name in (*self._trained, *self._kept)}

    def load_state_dict(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Copy saved tensors into what PEFT added.

        Raises:
            MethodError: a tensor is missing, is not known, or has another shape.
        """
        own = self.state_dict()
        check_same_names(own, state)
        copy_tensors(own, state)

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context PEFT's layers pass their input to the base alone."""
        if self._merged is not None:
            raise MethodError("the update is merged into the base; call unmerge() first")
        tuner = self.peft_model.base_model
        trained = {name: parameter.detach().clone() for name, parameter in self._written().items()}
        with silent():
            tuner.disable_adapter_layers()
        self._write(self._base_start)
        try:
            yield self.module
        finally:
            self._write(trained)
            with silent():
                tuner.enable_adapter_layers()

    def _written(self) -> dict[str, nn.Parameter]:
        """Return the base's own parameters that are trained (biases)."""
        named = self._parameters()
        return {name: named[name] for name in self._base_start}

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._written().items():
            parameter.copy_(values[name])

    def merge(self, member: int = 0) -> nn.Module:
        """Fold PEFT's update into the base's weights and return the plain model.

        Merging again changes nothing.

        Raises:
            MethodError: PEFT cannot merge this method.
        """
        if self._merged is not None:
            return self.module
        layers = self._tuner_layers()
        bases = {name: _base_of(layer) for name, layer in layers.items()}
        self._merged = [(p, p.detach().clone()) for base in bases.values() for p in base.parameters()]
        name = str(self.peft_model.peft_type.value)
        try:
            with explained(name, self.module), torch.no_grad():
                for layer in layers.values():
                    if hasattr(layer, "merge"):
                        layer.merge()
        except MethodError as error:
            self._restore()
            raise MethodError(f"{type(self).__name__} has nothing to merge: {error}") from error
        swap(self.module, {name: _base_of(layer, merged=True) for name, layer in layers.items()})
        self._layers = layers
        return self.module

    def unmerge(self) -> None:
        """Put the base's weights and PEFT's layers back, bit for bit."""
        if self._merged is None:
            return
        swap(self.module, self._layers)
        self._restore()

    def _restore(self) -> None:
        """Let PEFT know that nothing is merged, then copy the bits of before over its arithmetic."""
        with silent(), torch.no_grad():
            for layer in self._tuner_layers().values():
                if getattr(layer, "merged_adapters", None):
                    layer.unmerge()
            for parameter, before in self._merged or ():
                parameter.data = before
        self._merged = None

    def remove(self) -> nn.Module:
        """Take PEFT's layers out and return the base."""
        self.unmerge()
        self._write(self._base_start)
        swap(self.module, {name: _base_of(layer) for name, layer in self._tuner_layers().items()})
        if hasattr(self.module, "peft_config"):
            del self.module.peft_config
        return self.module

    def before_training(self, num_steps: int) -> None:
        """Fit AdaLoRA's schedule to the budget."""
        if self._schedule is not None:
            self._schedule.before_training(num_steps)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Let AdaLoRA share its ranks out."""
        if self._schedule is not None:
            self._schedule.after_optimizer_step(step)

    def extra_loss(self, member: int = 0) -> Tensor | None:
        """Return AdaLoRA's regulariser."""
        return None if self._schedule is None else self._schedule.extra_loss()

    def training_state(self, member: int = 0) -> dict[str, Tensor]:
        """Return what AdaLoRA's allocator keeps."""
        return {} if self._schedule is None else self._schedule.state()

    def load_training_state(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Put back what AdaLoRA's allocator kept."""
        if self._schedule is not None:
            self._schedule.load_state(state)

    def write_peft(self, folder: Path, base_name: str, head: Mapping[str, Tensor] | None = None) -> None:
        """Write a PEFT adapter folder, as PEFT itself does; `PeftModel.from_pretrained` reads it.

        Args:
            folder: made where it is not there.
            base_name: id or path of the base, for `base_model_name_or_path`.
            head: a classification head that was trained with the adapter, by name in the model.
        """
        _write_peft(self.peft_model, folder, base_name, head, "base_model.model.")


def _write_peft(peft_model: Any, folder: Path, base_name: str, head: Mapping[str, Tensor] | None, prefix: str) -> None:
    """Let PEFT write its adapter, and put the head beside it as PEFT's `modules_to_save` would be."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    for config in peft_model.peft_config.values():
        config.base_model_name_or_path = base_name
        if head:
            config.modules_to_save = sorted({name.rpartition(".")[0] for name in head})
    with silent():
        peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    if head:
        path = folder / SAFETENSORS_WEIGHTS_NAME
        own = {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
        save_file(load_file(path) | own, path, metadata={"format": "pt"})


def _base_of(layer: Any, merged: bool = False) -> nn.Module:
    """Return the module that a PEFT layer stands for: the base's, or of a copy that is trained whole, that copy."""
    if hasattr(layer, "original_module"):
        kept: nn.Module = layer.modules_to_save[layer.active_adapters[0]] if merged else layer.original_module
        return kept
    base: nn.Module = layer.get_base_layer()
    return base


@dataclass(frozen=True)
class ExternalPeft:
    """A PEFT method with its configuration fixed.

    Args:
        config: what `peft.get_peft_config` takes: `peft_type` and its options; `task_type` follows from the model.
    """

    config: Mapping[str, Any]

    @property
    def trains_base(self) -> bool:
        """No: PEFT freezes the base (but for biases that it is asked to train)."""
        return False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> AdaptedModel:
        """Put the method on `model`, which is frozen and changed in place.

        Raises:
            MethodError: a type, an option or a value that PEFT does not know.
            UnsupportedError: PEFT's method does not know this kind of model, or writes over the base.
        """
        config = read_config(self.config, model)
        name = str(self.config["peft_type"]).upper()
        if name in PROMPTS:
            check_room(model, config.num_virtual_tokens)  # type: ignore[attr-defined]  # of prompts it has
        held = {key: _Held.of(tensor) for key, tensor in _tensors(model)}
        is_training = model.training
        with explained(name, model), _seeded(one_generator(generator)):
            from peft import PeftModel

            peft_model: Any = PeftModel(model, config).train(is_training)
        if name in PROMPTS:
            model.requires_grad_(False)
            return ExternalPrompt(model, peft_model)
        _check_base(name, model, held)
        for key, parameter in model.named_parameters():
            if COUNTER in key:  # PEFT makes it trainable again when it moves it to another device
                parameter.requires_grad_(False)
            elif parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        schedule = AdaLora(peft_model.base_model, self.config.get("total_step")) if name == ADALORA else None
        return ExternalModel(model, peft_model, {id(one.tensor) for one in held.values()}, schedule)


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Within the context PyTorch's own generator, which PEFT draws from, starts anew; after it, it is as before."""
    seed = int(torch.randint(LARGEST_SEED, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # the model is still on the CPU
        torch.manual_seed(seed)
        yield


def _check_base(name: str, model: nn.Module, held: Mapping[str, _Held]) -> None:
    """Refuse a method that wrote over the base while it was put on it: the base could not be had back."""
    present = {id(tensor) for _, tensor in _tensors(model)}
    for key, one in held.items():
        if id(one.tensor) not in present or not one.is_untouched:
            raise UnsupportedError(f"peft_type {name} writes over the base's own weights ({key}), which must stay")
