"""Texts of one batch, written on tensors without numbers by the writers that test a run."""

from collections.abc import Sequence
from typing import Any

import torch

from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.decoding import Chooser, Row
from tuneoff.evaluation.padded import BeamWriter, PaddedWriter
from tuneoff.evaluation.refill import RefilledWriter, can_refill
from tuneoff.methods.structure import find_stack
from tuneoff.planning.operations import NO_WORK, total
from tuneoff.planning.setting import PAD, Setting, TracedPhase, phase_of, runtime_of, tally_of
from tuneoff.planning.tally import Product, Tally
from tuneoff.planning.traced import TracedModel, following_layers
from tuneoff.study.testing import Decoding


@torch.no_grad()
def generate_phase(setting: Setting, model: TracedModel) -> TracedPhase:
    """Trace a batch of texts of every strategy, from the reading of their prompts to their last tokens.

    The first step after the reading and the last one are traced; what lies between grows evenly from one to the other.
    """
    study, module = setting.study, model.adapted.module
    tally = tally_of(setting, model)
    tally.has_cache = True
    prompts = [[1 + index] + [PAD] * (length - 1) for index, length in enumerate(setting.lengths.prompts)]
    drawn = [one for one in study.decoding if not _has_beams(one)]
    with setting.entered(model, tally), runtime_of(setting).autocast(), following_layers(module, tally):
        module.eval()
        forward = CachedForward(module, PAD)
        tally.place = "begin"
        # followed, as casts of weights that autocast makes here are kept, but no part of what the texts take
        refills = len(prompts) * sum(one.samples for one in drawn) > 1 and can_refill(forward, prompts)
        sums = _Sums(tally)
        with _MaskAnswers(module, tally, is_full=len(set(setting.lengths.prompts)) == 1):
            if refills:
                _refill(setting, forward, prompts, drawn, sums)
            for decoding in study.decoding:
                if _has_beams(decoding) or not refills:
                    _write_padded(setting, forward, prompts, decoding, sums)
    phase = phase_of("generate", tally)
    phase.moved_bytes, phase.num_operations, phase.products = sums.moved_bytes, sums.num_operations, sums.products
    phase.passes = sums.passes
    num_texts = len(prompts) * sum(decoding.samples for decoding in study.decoding)
    phase.num_targets = num_texts * study.generate.max_new_tokens
    phase.num_tokens = sum(setting.lengths.prompts) + phase.num_targets
    return phase


def _has_beams(decoding: Decoding) -> bool:
    return decoding.beams is not None and decoding.beams > 1


class _Sums:
    """A tally's sums with some stretches counted more often than they were traced."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.moved_bytes = 0.0
        self.num_operations = 0.0
        self.products: dict[Product, float] = {}
        self.passes = NO_WORK
        self._seen = (tally.moved_bytes, tally.num_operations, dict(tally.products))
        tally.passes.take()  # what came before is not of the texts

    def add(self, times: float) -> None:
        """Add what the tally has seen since the last time, so many times."""
        tally, (moved_bytes, num_operations, products) = self._tally, self._seen
        self.moved_bytes += times * (tally.moved_bytes - moved_bytes)
        self.num_operations += times * (tally.num_operations - num_operations)
        for product, number in tally.products.items():
            self.products[product] = self.products.get(product, 0) + times * (number - products.get(product, 0))
        self.passes = total([self.passes, tally.passes.take().times(times)])
        self._seen = (tally.moved_bytes, tally.num_operations, dict(tally.products))


class _MaskAnswers:
    """Within the context a model that asks whether nothing is masked is told so only where it is true.

    Args:
        module: the model.
        tally: which answers.
        is_full: whether nothing is masked, as all prompts are of one length.
    """

    def __init__(self, module: torch.nn.Module, tally: Tally, *, is_full: bool) -> None:
        self._stack = find_stack(module)
        self._tally = tally
        self._is_full = is_full

    def _begin(self, *_: Any) -> None:
        self._tally.answer = self._is_full

    def _end(self, *_: Any) -> None:
        self._tally.answer = True

    def __enter__(self) -> None:
        self._handles = [
            self._stack.register_forward_pre_hook(self._begin),
            self._stack.register_forward_hook(self._end),
        ]

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()


def _refill(
    setting: Setting,
    forward: CachedForward,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    sums: _Sums,
) -> None:
    """Trace the strategies that share one batch of slots."""
    spec = setting.study.generate
    writer = RefilledWriter(
        forward,
        [Chooser(decoding, 0) for decoding in decodings],
        [decoding.samples for decoding in decodings],
        spec.batch_size,
        spec.max_new_tokens,
        None,
    )
    writer.begin(prompts)
    sums.add(1)
    if not writer.live:
        return
    num_texts = len(prompts) * sum(decoding.samples for decoding in decodings)
    num_steps = (spec.max_new_tokens - 1) * max(1.0, num_texts / len(writer.live))
    writer.step()
    sums.add(num_steps / 2)
    if not writer.live:
        sums.add(num_steps / 2)
        return
    writer.lengths = [length + spec.max_new_tokens - 3 for length in writer.lengths]  # the last step but the reading
    writer.step()
    sums.add(num_steps / 2)


def _write_padded(
    setting: Setting,
    forward: CachedForward,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    sums: _Sums,
) -> None:
    """Trace a strategy that is written in left-padded batches; its steps are those of prompts as long as at the end."""
    spec = setting.study.generate
    num_rows = max(1, spec.batch_size // (decoding.beams or 1))
    rows = [Row(prompt, sample) for prompt in range(len(prompts)) for sample in range(decoding.samples)]
    num_batches = -(-len(rows) // num_rows)
    longer = [[*prompt, *[PAD] * max(0, spec.max_new_tokens - 2)] for prompt in prompts]

    def write(own: Sequence[Sequence[int]], num_tokens: int) -> None:
        writer: BeamWriter | PaddedWriter
        if _has_beams(decoding):
            writer = BeamWriter(forward, decoding.beams or 1, num_tokens, PAD, None)
        else:
            writer = PaddedWriter(forward, Chooser(decoding, 0), num_tokens, None)
        writer.write(own, rows[:num_rows])

    write(prompts, 1)
    sums.add(num_batches)
    if spec.max_new_tokens > 1:
        num_steps = num_batches * (spec.max_new_tokens - 1)
        write(longer, 1)
        sums.add(-num_steps)
        write(longer, 2)
        sums.add(num_steps)
