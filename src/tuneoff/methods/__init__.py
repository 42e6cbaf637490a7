"""Fine-tuning methods, usable alone: `tuneoff.methods.LoRA(rank=8, alpha=16).adapt(model, generator)`."""

from tuneoff.methods.base import AdaptedModel as AdaptedModel
from tuneoff.methods.base import Method as Method
from tuneoff.methods.bottleneck import Bottleneck as Bottleneck
from tuneoff.methods.lora import LoRA as LoRA
from tuneoff.methods.lora import LoRACohort as LoRACohort
from tuneoff.methods.registry import cohort_from_specs as cohort_from_specs
from tuneoff.methods.registry import method_from_spec as method_from_spec
from tuneoff.methods.selective import BitFit as BitFit
from tuneoff.methods.selective import Full as Full
from tuneoff.methods.selective import HeadOnly as HeadOnly
from tuneoff.methods.selective import NoTraining as NoTraining
from tuneoff.methods.soft_prompt import PrefixTuning as PrefixTuning
from tuneoff.methods.soft_prompt import PromptTuning as PromptTuning
