"""What a measurement's process has imported before it is forked: nothing here may start threads or touch a GPU."""

import peft as peft
from benchmarks import switches as switches
from benchmarks.speed import worker as worker
from transformers import trainer as trainer
from transformers.models.gpt2 import modeling_gpt2 as modeling_gpt2
from transformers.models.llama import modeling_llama as modeling_llama

from tuneoff import methods as methods
from tuneoff.training import loop as loop
