"""Method specs: what a study file says of one fine-tuning method, as frozen values.

Each has the hyperparameters of its paper under the field's names; how they are computed is in `tuneoff.methods`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from tuneoff.study.value import LARGEST, PositiveInt, Value

ALL_LINEAR = "all-linear"
"""Target pattern that stands for every linear module but the output head."""

Dropout = Annotated[float, Field(ge=0, lt=1)]
Targets = Annotated[tuple[str, ...], Field(min_length=1)]


class NoneMethod(Value):
    """The base as it is (zero-shot)."""

    method: Literal["none"]


class FullMethod(Value):
    """All weights are trained."""

    method: Literal["full"]


class LoraMethod(Value):
    """Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685) and its variants; with `quantize` it is QLoRA."""

    method: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """Numerator of the scaling alpha / rank (rsLoRA: alpha / sqrt(rank))."""
    dropout: Dropout = 0.0
    """Share of each adapted module's input that is zeroed on the way to A, while training."""
    targets: Targets = (ALL_LINEAR,)
    """Module names or ends of names (`attn.c_proj`), with `*` for any part; `all-linear` is every linear module but
    the output head.
    """
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski, 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Learn magnitude and direction apart (Liu et al., 2024, arXiv:2402.09353)."""
    lr_ratio: PositiveFloat = 1.0
    """Learning rate of B over that of A (LoRA+; Hayou et al., 2024, arXiv:2402.12354); `lr` is A's."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the base's biases are trained too: none, all, or those of the adapted modules."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Type in which the frozen base's linear layers are held (QLoRA; Dettmers et al., 2023, arXiv:2305.14314)."""


class BottleneckMethod(Value):
    """Bottleneck adapters (Houlsby et al., 2019, arXiv:1902.00751; Pfeiffer et al., 2021, arXiv:2005.00247)."""

    method: Literal["bottleneck"]
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """After attention and after the MLP of each block (Houlsby), or after the MLP alone (Pfeiffer)."""
    size: PositiveInt = 64
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: Dropout = 0.0


class PromptMethod(Value):
    """Prompt tuning (Lester et al., 2021, arXiv:2104.08691): trained vectors before the input's embeddings."""

    method: Literal["prompt"]
    num_virtual_tokens: PositiveInt = 20
    init: Literal["vocabulary", "random"] = "vocabulary"
    """Start from embeddings of tokens of the vocabulary, drawn at random, or from a normal of the embeddings' own
    spread.
    """


class PrefixMethod(Value):
    """Prefix tuning (Li and Liang, 2021, arXiv:2101.00190): trained keys and values before those of every layer."""

    method: Literal["prefix"]
    num_virtual_tokens: PositiveInt = 20
    projection: PositiveInt | None = None
    """Width of the MLP through which the prefix is reparametrised while training (section 4.3); none trains it
    directly.
    """


class BitfitMethod(Value):
    """Bias terms alone (Ben Zaken et al., 2022, arXiv:2106.10199)."""

    method: Literal["bitfit"]


class HeadMethod(Value):
    """The output head alone, on a frozen base."""

    method: Literal["head"]


class PeftMethod(Value):
    """Any method of the PEFT library, by its own configuration."""

    method: Literal["peft"]
    peft: Annotated[dict[str, Any], Field(min_length=1)]
    """What `peft.get_peft_config` takes: `peft_type` (IA3, ADALORA, VERA, LOHA, P_TUNING ...) and its options."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not isinstance(self.peft.get("peft_type"), str):
            raise ValueError(f"peft needs its peft_type, such as IA3; found the keys {', '.join(map(str, self.peft))}")
        for key, value in self.peft.items():
            if isinstance(value, int) and abs(value) >= LARGEST:
                raise ValueError(f"{key} should be less than {LARGEST}; found {value}")
        return self


class LoadMethod(Value):
    """Something that exists already.

    A PEFT folder or a Transformers checkpoint. Scored with the others, its training not verified.
    """

    method: Literal["load"]
    path: str


MethodSpec = Annotated[
    NoneMethod
    | FullMethod
    | LoraMethod
    | BottleneckMethod
    | PromptMethod
    | PrefixMethod
    | BitfitMethod
    | HeadMethod
    | PeftMethod
    | LoadMethod,
    Field(discriminator="method"),
]


def rank_of(spec: MethodSpec) -> int | None:
    """Return the rank of a low-rank method, PEFT's own `r` among them; none where there is no such thing."""
    if isinstance(spec, LoraMethod):
        return spec.rank
    value = spec.peft.get("r") if isinstance(spec, PeftMethod) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


METHODS: dict[str, type[Value]] = {
    "none": NoneMethod,
    "full": FullMethod,
    "lora": LoraMethod,
    "bottleneck": BottleneckMethod,
    "prompt": PromptMethod,
    "prefix": PrefixMethod,
    "bitfit": BitfitMethod,
    "head": HeadMethod,
    "peft": PeftMethod,
    "load": LoadMethod,
}
UNTRAINED_METHODS = ("none", "load")
DEFAULT_RATES = {
    "full": (1e-5, 3e-5, 1e-4),
    "lora": (1e-4, 3e-4, 1e-3),
    "bottleneck": (1e-4, 3e-4, 1e-3),
    "prompt": (1e-2, 1e-1, 3e-1),
    "prefix": (1e-3, 1e-2, 3e-2),
    "bitfit": (3e-4, 1e-3, 3e-3),
    "head": (3e-4, 1e-3, 3e-3),
    "peft": (1e-4, 1e-3, 1e-2),
}
"""Rates tried where an arm names none. LoRA's lie ten times above full's (Schulman et al., 2025, "LoRA Without
Regret": 9.8x over 14 models); prompts need rates up to 0.3 (Lester et al., 2021, section 3); the rest are starting
points, and the report says where the best of them lies at the edge of its grid.
"""
