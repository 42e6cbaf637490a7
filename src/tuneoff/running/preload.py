"""Imports what every child needs; the fork server reads it once, so that children start at once."""

import accelerate as accelerate
import datasets as datasets
import transformers.models.auto.modeling_auto as modeling_auto
import transformers.models.gpt2.modeling_gpt2 as modeling_gpt2
import transformers.models.llama.modeling_llama as modeling_llama

import tuneoff.running.trial as trial
