r"""Soft prompts: trained vectors before every text, at the input (prompt tuning) or in every layer (prefix tuning).

Sources: Lester, Al-Rfou and Constant, 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning",
arXiv:2104.08691, section 2; Li and Liang, 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
arXiv:2101.00190, sections 4.2, 4.3 and 7.4.

Departures from the papers: tokens for the start are drawn from the whole vocabulary, not from its most common ones; a
random start is a normal of the embeddings' own mean and spread, where Lester draws uniformly from -0.5 to 0.5; the
prefix starts from the keys and values that the base computes for such tokens (section 7.4's "real words", which the
authors' code keeps for its low-data runs), so that at step 0 it is the same as a prompt of those tokens. With
`projection` it starts at random, as theirs does.

Virtual tokens are invisible to callers. Hooks on the model's trunk put them in front of the first call's text, shift
positions and attention masks, and take their positions off the hidden states, so that callers, and `generate`, count
the text's own positions alone. They stand left of any padding, at positions 0 to V - 1, and are always attended to.
What the last virtual token predicts is taken off with them: a text's first token is no target, as under every method.

Shapes: R rows, T positions of the text, V virtual tokens, D width of the embeddings, L layers, H key-value heads (fewer
than the query heads in grouped-query attention), d width of one head.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods.base import AdaptedModel, empty_linear, one_generator
from tuneoff.methods.structure import find_stack, text_config

PROMPT_NAME, PREFIX_NAME = "prompt_embeddings", "prefix"
CHECKPOINTING = (
    "prefix tuning cannot be trained with gradient checkpointing: Transformers drops the cache, which holds the "
    "prefix, from every checkpointed layer. Turn gradient checkpointing off, or use prompt tuning."
)


class SoftPromptModel(AdaptedModel):
    """A model with virtual tokens before every text; `_inject` of the kinds below says where they go in.

    Args:
        module: the base, frozen.
        added: module that holds the trained weights.
        name: name under which the trunk holds it, and first part of the saved names.
        num_virtual_tokens: V.
    """

    def __init__(self, module: nn.Module, added: nn.Module, name: str, num_virtual_tokens: int) -> None:
        super().__init__(module)
        self.num_virtual_tokens = num_virtual_tokens
        self.added = added
        self._name = name
        self._enabled = True
        self._is_first = False
        """Whether the call that is under way has the virtual tokens put in (and not in its cache already)."""
        self._trunk = trunk = find_stack(module)
        self._arguments = list(inspect.signature(trunk.forward).parameters)
        trunk.add_module(name, added)
        self._handles = (
            trunk.register_forward_pre_hook(self._before, with_kwargs=True),
            trunk.register_forward_hook(self._after),
        )

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return the weights that make the virtual tokens."""
        return {f"{self._name}.{key}": parameter for key, parameter in self.added.named_parameters()}

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context there are no virtual tokens."""
        before, self._enabled = self._enabled, False
        try:
            yield self.module
        finally:
            self._enabled = before

    def remove(self) -> nn.Module:
        """Take the virtual tokens and the hooks out and return the base."""
        for handle in self._handles:
            handle.remove()
        delattr(self._trunk, self._name)
        return self.module

    def _before(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Put the virtual tokens into a call of the trunk."""
        if not self._enabled:
            return None
        given = dict(zip(self._arguments, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        if cache is not None and not isinstance(cache, DynamicCache):
            raise UnsupportedError(
                f"virtual tokens go into a DynamicCache; found {type(cache).__name__}. Leave cache_implementation out."
            )
        self._is_first = cache is None or cache.get_seq_length() == 0
        self._shift(given)
        self._inject(trunk, given)
        return (), given

    def _shift(self, given: dict[str, Any]) -> None:
        """Make room for V positions in the attention mask and in the position ids."""
        mask = given.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.ndim != 2:
                raise UnsupportedError(
                    "virtual tokens need an attention mask of shape (rows, positions); found "
                    f"{tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}"
                )
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], self.num_virtual_tokens), mask], dim=1)
        positions = given.get("position_ids")
        if positions is not None:
            given["position_ids"] = positions + self.num_virtual_tokens  # (R, T), or (1, T) for all rows

    def _inject(self, trunk: nn.Module, given: dict[str, Any]) -> None:
        """Put the virtual tokens into the arguments of the trunk."""
        raise NotImplementedError

    def _after(self, trunk: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Take what the caller did not ask for off the trunk's output."""
        return output


class PromptModel(SoftPromptModel):
    """A model with trained embeddings before those of every text."""

    added: nn.Embedding

    def _inject(self, trunk: nn.Module, given: dict[str, Any]) -> None:
        if not self._is_first:
            return
        if given.get("token_type_ids") is not None:
            raise UnsupportedError("prompt tuning knows no token types; leave token_type_ids out")
        ids, embeddings = given.pop("input_ids", None), given.get("inputs_embeds")
        if embeddings is None:
            embeddings = _embeddings(self.module)(ids)
        prompt = self.added.weight.to(embeddings.dtype).expand(embeddings.shape[0], -1, -1)
        given["inputs_embeds"] = torch.cat([prompt, embeddings], dim=1)  # (R, V + T, D)
        positions = given.get("position_ids")
        if positions is not None:
            own = torch.arange(self.num_virtual_tokens, dtype=positions.dtype, device=positions.device)
            given["position_ids"] = torch.cat([own.expand(positions.shape[0], -1), positions], dim=1)

    def _after(self, trunk: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._enabled and self._is_first:
            num = self.num_virtual_tokens
            output.last_hidden_state = output.last_hidden_state[:, num:]
            if output.get("hidden_states") is not None:
                output.hidden_states = tuple(hidden[:, num:] for hidden in output.hidden_states)
            if output.get("attentions") is not None:  # the text's queries, over all keys
                output.attentions = tuple(weights[:, :, num:] for weights in output.attentions)
        return output


class PrefixModel(SoftPromptModel):
    """A model with trained keys and values before those of every text, in every layer."""

    added: "PrefixEncoder"
    _hides_cache = False
    """Whether the cache of the call that is under way holds the prefix alone, and no caller asked for one."""

    def prefix(self) -> Tensor:
        """Return the keys and values as one tensor (V, L * 2 * H * d), laid out as PEFT's.

        Layer by layer, its keys before its values. With a projection this is all that has to be kept once it is
        trained.
        """
        with torch.no_grad():
            found: Tensor = self.added()
        return found

    def _inject(self, trunk: nn.Module, given: dict[str, Any]) -> None:
        if trunk.training and is_checkpointing(trunk):
            raise UnsupportedError(CHECKPOINTING)
        self._hides_cache = False
        if not self._is_first:
            return
        tokens = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
        cache = given.get("past_key_values")
        if cache is None:
            use_cache = given.get("use_cache")
            self._hides_cache = not (text_config(self.module).use_cache if use_cache is None else use_cache)
            cache = given["past_key_values"] = DynamicCache(config=self.module.config)  # type: ignore[arg-type]
        self._fill(cache, tokens.shape[0])

    def _fill(self, cache: Cache, rows: int) -> None:
        shape = self.added.shape
        parts = (
            self.added()
            .to(_embeddings(self.module).weight.dtype)
            .view(-1, 2 * shape.num_layers, shape.num_heads, shape.head_size)
        )
        # taken apart at once: a slice for each layer would each get a gradient as large as all of them
        tensors = parts.permute(1, 2, 0, 3).unbind()  # 2 L of (H, V, d)
        for layer in range(shape.num_layers):
            key, value = (tensor.expand(rows, -1, -1, -1) for tensor in tensors[2 * layer : 2 * layer + 2])
            cache.update(key, value, layer)

    def _after(self, trunk: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._enabled and self._hides_cache:
            output.past_key_values = None
        return output


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a model's keys and values: layers L, key-value heads H, and width d of one head."""

    num_layers: int
    num_heads: int
    head_size: int

    @property
    def width(self) -> int:
        """Numbers in one token's keys of one layer."""
        return self.num_heads * self.head_size


class PrefixEncoder(nn.Module):
    r"""Holds the prefix, or makes it: $P = W_2 \tanh(W_1 E + b_1) + b_2$ with a projection (section 4.3).

    Args:
        shape: L, H and d.
        weight: the prefix itself at the start, (V, L * 2 * H * d); or, with a projection, E (V, H * d).
        projection: width of the MLP; none trains the prefix directly.
        generator: draws the MLP's weights, uniform within 1 / sqrt(inputs) as `nn.Linear` does.
    """

    def __init__(self, shape: CacheShape, weight: Tensor, projection: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        if projection is None:
            self.weight = nn.Parameter(weight)
            return
        device = weight.device
        self.embedding = nn.Parameter(weight)
        narrow = empty_linear(shape.width, projection, device)
        wide = empty_linear(projection, 2 * shape.num_layers * shape.width, device)
        self.transform = nn.Sequential(narrow, nn.Tanh(), wide)
        if device.type != "meta":
            for layer in (narrow, wide):
                bound = 1.0 / math.sqrt(layer.in_features)
                for parameter in layer.parameters():
                    parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def forward(self) -> Tensor:
        """Return the prefix, (V, L * 2 * H * d)."""
        return self.transform(self.embedding) if hasattr(self, "transform") else self.weight


@dataclass(frozen=True)
class PromptTuning:
    """Prompt tuning with its hyperparameters fixed.

    Args:
        num_virtual_tokens: V.
        init: `vocabulary` starts from the embeddings of tokens drawn uniformly from the vocabulary; `random` from a
            normal with the mean and the standard deviation of all embeddings.
    """

    num_virtual_tokens: int = 20
    init: Literal["vocabulary", "random"] = "vocabulary"
    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> PromptModel:
        """Put virtual tokens before the embeddings of `model`, which is frozen.

        Raises:
            MethodError: more virtual tokens than the model has positions.
            UnsupportedError: the model has no trunk below its head, or keeps a state in place of keys and values.
        """
        check_room(model, self.num_virtual_tokens)
        start = self._start(_embeddings(model), one_generator(generator))
        added = nn.Embedding(start.shape[0], start.shape[1], _weight=start)
        model.requires_grad_(False)
        return PromptModel(model, added, PROMPT_NAME, self.num_virtual_tokens)

    @torch.no_grad()
    def _start(self, embeddings: nn.Embedding, generator: torch.Generator) -> Tensor:
        """Return the first embeddings, fp32 (V, D), as the model's blocks would see them (Gemma scales its own)."""
        table, num = embeddings.weight, self.num_virtual_tokens
        if table.device.type == "meta":
            return torch.empty(num, table.shape[1], device=table.device)
        if self.init == "vocabulary":
            drawn: Tensor = embeddings(_draw_tokens(table, num, generator))
            return drawn.float()
        everything: Tensor = embeddings(torch.arange(len(table), device=table.device)).float()
        noise = torch.randn(num, table.shape[1], generator=generator).to(table.device)
        return noise * everything.std() + everything.mean()


@dataclass(frozen=True)
class PrefixTuning:
    """Prefix tuning with its hyperparameters fixed.

    Args:
        num_virtual_tokens: V.
        projection: width of the MLP that makes the prefix while it is trained; none trains it directly.
    """

    num_virtual_tokens: int = 20
    projection: int | None = None
    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> PrefixModel:
        """Put keys and values before those of every layer of `model`, which is frozen.

        Raises:
            MethodError: more virtual tokens than the model has positions.
            UnsupportedError: gradient checkpointing is on, or the model does not hold keys and values of one shape in
                every layer.
        """
        check_room(model, self.num_virtual_tokens)
        if is_checkpointing(model):
            raise UnsupportedError(CHECKPOINTING)
        draw = one_generator(generator)
        model.requires_grad_(False)
        ids = _draw_tokens(_embeddings(model).weight, self.num_virtual_tokens, draw)
        shape, start = read_cache(model, ids)
        if self.projection is not None and start.device.type == "meta":
            start = start.new_empty(self.num_virtual_tokens, shape.width)
        elif self.projection is not None:
            start = torch.randn(self.num_virtual_tokens, shape.width, generator=draw).to(start.device)
        encoder = PrefixEncoder(shape, start, self.projection, draw).train(model.training)
        return PrefixModel(model, encoder, PREFIX_NAME, self.num_virtual_tokens)


def is_checkpointing(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on in any part of a model."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def check_room(model: nn.Module, num_virtual_tokens: int) -> None:
    """Refuse models without room for virtual tokens.

    Raises:
        MethodError: the virtual tokens leave no position of the context to a text.
        UnsupportedError: the model keeps a state in place of keys and values (Mamba).
    """
    if getattr(model, "_is_stateful", False):
        raise UnsupportedError(
            f"{type(model).__name__} keeps a state in place of keys and values; virtual tokens need a model with "
            "attention in every layer"
        )
    context = getattr(text_config(model), "max_position_embeddings", None)
    if isinstance(context, int) and num_virtual_tokens >= context:
        raise MethodError(
            f"num_virtual_tokens: {num_virtual_tokens} leave nothing of the model's context of {context} positions; "
            f"allowed: 1 to {context - 1}, less the length of the texts"
        )


def _embeddings(model: nn.Module) -> nn.Embedding:
    found: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    return found


def _draw_tokens(table: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Return token ids (V,), drawn on the CPU so that they are equal on every device."""
    return torch.randint(table.shape[0], (num,), generator=generator).to(table.device)


@torch.no_grad()
def read_cache(model: nn.Module, ids: Tensor) -> tuple[CacheShape, Tensor]:
    """Return the sizes of the base's keys and values, and those of tokens (V,) as a prefix: fp32 (V, L * 2 * H * d).

    On the meta device this gives shapes, as everywhere.

    Raises:
        UnsupportedError: the model keeps something else than keys and values of one shape in every layer.
    """
    stack, was_training = find_stack(model), model.training
    model.eval()
    # As embeddings, because Transformers looks ids over for padding, which it cannot do on the meta device.
    embedded = _embeddings(model)(ids[None])
    cache = stack(inputs_embeds=embedded, use_cache=True).get("past_key_values")
    model.train(was_training)
    layers = cache.layers if isinstance(cache, DynamicCache) else []
    parts = [getattr(layer, part, None) for layer in layers for part in ("keys", "values")]
    shapes = {tuple(part.shape) if isinstance(part, Tensor) else None for part in parts}
    shape = next(iter(shapes), None)
    if len(shapes) != 1 or shape is None or shape[2] != len(ids):
        raise UnsupportedError(
            f"prefix tuning needs a model that keeps keys and values of one shape in every layer; "
            f"{type(model).__name__} keeps {sorted(map(str, shapes)) or type(cache).__name__}"
        )
    stacked = torch.stack([part[0] for part in parts if part is not None])  # (2 L, H, V, d)
    flat = stacked.permute(2, 0, 1, 3).reshape(len(ids), -1)
    return CacheShape(len(layers), shape[1], shape[3]), flat.float()
