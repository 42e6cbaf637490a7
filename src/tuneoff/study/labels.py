"""What a method is called where people read it, in a word or two."""

from tuneoff.study.methods import BottleneckMethod, LoraMethod, MethodSpec, PeftMethod

_NAMES = {
    "none": "zero-shot",
    "full": "full",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "bitfit": "BitFit",
    "head": "head only",
    "load": "loaded",
}
_PLACEMENTS = {"houlsby": "Houlsby", "pfeiffer": "Pfeiffer"}


def method_label(spec: MethodSpec) -> str:
    """Return the method's name, its variants in it: `LoRA`, `rsLoRA`, `DoRA`, `QLoRA nf4`, `PEFT IA3`."""
    if isinstance(spec, LoraMethod):
        return _lora_label(spec)
    if isinstance(spec, BottleneckMethod):
        return f"{_PLACEMENTS[spec.placement]} bottleneck"
    if isinstance(spec, PeftMethod):
        return f"PEFT {spec.peft['peft_type']}"
    return _NAMES[spec.method]


def _lora_label(spec: LoraMethod) -> str:
    name = f"{'rs' if spec.rslora else ''}{'DoRA' if spec.dora else 'LoRA'}{'+' if spec.lr_ratio != 1 else ''}"
    if spec.quantize != "none":
        name = f"Q{name} {spec.quantize}"
    return name if spec.bias == "none" else f"{name}, {'all biases' if spec.bias == 'all' else 'their biases'}"
