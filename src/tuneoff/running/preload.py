"""Imports what every child needs; the fork server reads it once, so that children start at once."""

import accelerate as accelerate
import datasets as datasets
