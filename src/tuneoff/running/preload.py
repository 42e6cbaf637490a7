"""Imports what every child needs; the fork server reads it once, so that children start at once.

Without the last two a child spends 3.5 s of processor time on imports, with them 0.1 s (measured here, torch 2.13).
"""

import accelerate as accelerate
import datasets as datasets
from transformers import modeling_utils as modeling_utils

from tuneoff.running import trial as trial
