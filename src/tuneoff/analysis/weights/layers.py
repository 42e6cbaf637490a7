"""From a base matrix and its change to the values that are kept of a layer."""

import math
from collections.abc import Sequence

import numpy as np

from tuneoff.analysis.weights.columns import Array, Columns, checked, dense, finite_norm, product
from tuneoff.analysis.weights.intruders import BaseSpectrum
from tuneoff.analysis.weights.spectrum import Spectrum, factored_singular_values, singular_values
from tuneoff.study.explained import LayerChange

NUM_VALUES = 128
"""Singular values of a full change that are kept: what an adapter of rank 128 could hold at most."""
NUM_TOP = 10
"""Leading singular vectors that are looked at (Shuttleworth et al., 2024)."""
THRESHOLD = 0.6
"""Cosine below which one of them is an intruder; a choice of this house within what the paper sweeps."""


def layer_change(
    module: str,
    base: Array | BaseSpectrum,
    change: Array,
    *,
    num_values: int = NUM_VALUES,
    num_top: int = NUM_TOP,
    threshold: float = THRESHOLD,
    generator: np.random.Generator,
) -> LayerChange:
    r"""Return how a full change D turned a weight matrix W into W + D.

    Norms are Frobenius norms, exact. Spectrum: `tuneoff.analysis.weights.spectrum`, with the error of each way.
    Intruder dimensions: `tuneoff.analysis.weights.intruders`. Weights have no unit.

    Args:
        module: name of the layer.
        base: W, (out, in), or its spectrum where several changes of one layer are worked out. Layers that store their
            weight as (in, out), such as GPT-2's `Conv1D`, are transposed by the caller, D too. A fused matrix (q, k and
            v in one) is taken as the one matrix that it is.
        change: D, (out, in).
        num_values: how many singular values are kept.
        num_top: how many leading singular vectors of W + D are held against those of W.
        threshold: the cosine below which one of them is an intruder, above 0 and at most 1.
        generator: draws where Lanczos' method starts; it moves the last bits only.

    Raises:
        ValueError: not matrices of one shape and of real, finite numbers, or a setting out of range.
    """
    _check_settings(module, num_top, threshold, num_values)
    spectrum = _spectrum(module, base)
    wide = dense(checked(module, "the change", change, spectrum.shape), is_flipped=spectrum.is_flipped)
    norm = finite_norm(module, "the change", wide)
    values = singular_values(wide, norm, num_values, spectrum.limits, generator)
    return _layer(module, spectrum, wide, values, (num_values, num_top, threshold), generator)


def low_rank_change(
    module: str,
    base: Array | BaseSpectrum,
    b: Array,
    a: Array,
    scaling: float,
    *,
    num_top: int = NUM_TOP,
    threshold: float = THRESHOLD,
    generator: np.random.Generator,
) -> LayerChange:
    r"""Return how a low-rank change $D = s\,B A$ turned a weight matrix W into W + D.

    As `layer_change`, but D is only ever formed a block of columns at a time, and all its min(r, out, in) singular
    values are worked out exactly through the factors and kept.

    Args:
        module: name of the layer.
        base: W, (out, in), or its spectrum.
        b: B, (out, r).
        a: A, (r, in).
        scaling: s.
        num_top: how many leading singular vectors of W + D are held against those of W.
        threshold: the cosine below which one of them is an intruder, above 0 and at most 1.
        generator: draws where Lanczos' method starts; it moves the last bits only.

    Raises:
        ValueError: shapes that do not fit, numbers that are not real and finite, or a setting out of range.
    """
    _check_settings(module, num_top, threshold)
    spectrum = _spectrum(module, base)
    left = checked(module, "B", b, (spectrum.shape[0], None))
    right = checked(module, "A", a, (left.shape[1], spectrum.shape[1]))
    for name, factor in (("B", left), ("A", right)):
        finite_norm(module, name, dense(factor))
    if not math.isfinite(scaling):
        raise ValueError(f"{module}: the scaling is {scaling}; a finite number is needed.")
    scaled, right = left.astype(np.float64) * scaling, right.astype(np.float64)
    values = factored_singular_values(scaled, right)
    wide = product(scaled, right, is_flipped=spectrum.is_flipped)
    return _layer(module, spectrum, wide, values, (len(values.values), num_top, threshold), generator)


def _layer(
    module: str,
    spectrum: BaseSpectrum,
    wide: Columns,
    values: Spectrum,
    settings: tuple[int, int, float],
    generator: np.random.Generator,
) -> LayerChange:
    num_values, num_top, threshold = settings
    cosines: Sequence[float] = spectrum.max_cosines(wide, num_top, generator)
    if values.norm == 0:
        cosines = [1.0] * len(cosines)  # nothing changed, also where W's own vectors are not unique
    return LayerChange(
        module=module,
        shape=spectrum.shape,
        base_norm=spectrum.norm,
        change_norm=values.norm,
        singular_values=tuple(values.values[:num_values].tolist()),
        num_singular_values=values.count,
        effective_rank=values.effective_rank,
        rank_90=values.rank_holding(0.9),
        num_top=len(cosines),
        num_intruders=sum(cosine < threshold for cosine in cosines),
        max_cosines=tuple(cosines),
    )


def _spectrum(module: str, base: Array | BaseSpectrum) -> BaseSpectrum:
    return base if isinstance(base, BaseSpectrum) else BaseSpectrum.of(base, module=module)


def _check_settings(module: str, num_top: int, threshold: float, num_values: int = 1) -> None:
    if num_top < 1 or num_values < 1 or not 0 < threshold <= 1:
        raise ValueError(
            f"{module}: asked for {num_values} singular values, {num_top} leading vectors and threshold {threshold}; "
            "the counts are at least 1, the threshold is above 0 and at most 1."
        )
