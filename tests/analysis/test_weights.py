"""The algebra of weight changes, against numpy.linalg.svd in float64 and planted cases."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tuneoff
from tuneoff.analysis.weights import BaseSpectrum, Limits, layer_change, low_rank_change
from tuneoff.study.explained import LayerChange

BASE_FILE = Path(tuneoff.__file__).parent / "assets" / "demo_base" / "model.safetensors"
SHAPES = [(40, 40), (90, 50), (50, 90)]
LAYERS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
GRAM = Limits(svd_side=0, num_leading=8)
"""Every matrix counts as large: its spectrum comes from the Gram matrix."""
LANCZOS = Limits(svd_side=0, gram_side=0, num_leading=8)
"""Every matrix counts as very large: only leading singular values are worked out."""

Array = NDArray[Any]


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def orthogonal(size: int, generator: np.random.Generator) -> Array:
    return np.linalg.qr(generator.standard_normal((size, size)))[0]


def with_values(values: Array, shape: tuple[int, int], generator: np.random.Generator) -> Array:
    """A matrix with these singular values in random directions."""
    count = len(values)
    return (orthogonal(shape[0], generator)[:, :count] * values) @ orthogonal(shape[1], generator)[:, :count].T


def weight(layer: str) -> Array:
    """A weight of the demo base as (out, in), as a model holds it; the file has its transpose in float16."""
    return load_file(BASE_FILE)[f"transformer.h.1.{layer}.weight"].T.astype(np.float32)


def reference_cosines(base: Array, change: Array, num_top: int) -> Array:
    """Algorithm 1 of Shuttleworth et al. with full decompositions, as PEFT's `reduce_intruder_dimension` has it."""
    left = np.linalg.svd(base.astype(np.float64), full_matrices=False)[0]
    tuned = np.linalg.svd(base.astype(np.float64) + change, full_matrices=False)[0]
    return np.abs(tuned.T @ left).max(axis=1)[:num_top]


def check_against_svd(found: LayerChange, base: Array, change: Array, *, values: float, cosines: float) -> None:
    """Hold everything of a layer against numpy.linalg.svd; `values` and `cosines` are the errors allowed."""
    singular = np.linalg.svd(change.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum()
    held = np.cumsum(singular**2) / np.sum(singular**2)
    assert found.shape == base.shape
    assert found.base_norm == pytest.approx(np.linalg.norm(base.astype(np.float64)), rel=1e-13)
    assert found.change_norm == pytest.approx(np.linalg.norm(singular), rel=1e-13)
    kept = len(found.singular_values)
    np.testing.assert_allclose(found.singular_values, singular[:kept], rtol=0, atol=values * singular[0])
    known = shares > 1e-12
    entropy = -np.sum(shares[known] * np.log(shares[known]))
    if found.effective_rank is not None:
        assert found.effective_rank == pytest.approx(math.exp(entropy), rel=max(values, 1e-10) * len(singular))
    assert found.rank_90 == np.argmax(held >= 0.9) + 1
    for rank in (1, 4, 16, kept):
        assert found.share_held(rank) == pytest.approx(held[rank - 1], abs=1e-12)
    expected = reference_cosines(base, change, found.num_top)
    np.testing.assert_allclose(found.max_cosines, expected, rtol=0, atol=cosines)
    assert found.num_intruders == np.sum(expected < 0.6)


class TestFullChange:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_small_matrices_are_decomposed_exactly(self, shape: tuple[int, int]) -> None:
        generator = draws()
        base, change = generator.standard_normal(shape), generator.standard_normal(shape)
        found = layer_change("layer", base, change, generator=generator)
        check_against_svd(found, base, change, values=1e-13, cosines=1e-10)
        assert len(found.singular_values) == found.num_singular_values == min(shape)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_gram_matrices_give_the_same(self, shape: tuple[int, int]) -> None:
        generator = draws()
        base, change = generator.standard_normal(shape), generator.standard_normal(shape)
        found = layer_change("layer", BaseSpectrum.of(base, limits=GRAM), change, generator=generator)
        check_against_svd(found, base, change, values=1e-11, cosines=1e-9)

    @pytest.mark.parametrize("layer", LAYERS)
    @pytest.mark.parametrize("limits", [Limits(), GRAM], ids=["svd", "gram"])
    def test_a_real_layer(self, layer: str, limits: Limits) -> None:
        generator, base = draws(), weight(layer)
        change = 0.02 * generator.standard_normal(base.shape) + with_values(
            np.linalg.norm(base, 2) * 0.8 ** np.arange(6), (base.shape[0], base.shape[1]), generator
        )
        found = layer_change(layer, BaseSpectrum.of(base, limits=limits), change, generator=generator)
        check_against_svd(found, base, change, values=1e-11, cosines=1e-10 if limits == Limits() else 1e-8)
        assert len(found.singular_values) == 128 < found.num_singular_values == 192
        assert found.share_held(129) is None

    @pytest.mark.parametrize("decay", ["slow", "fast"])
    def test_lanczos_gives_leading_values_to_rounding(self, decay: str) -> None:
        """Evenly, and by a tenth at each; the error is the Gram matrix's: about 1e-15 (s_1 / s_i)^2 of s_i."""
        generator, index = draws(), np.arange(300)
        values = 1 - index / 400 if decay == "slow" else 0.9**index
        change, base = with_values(values, (300, 400), generator), generator.standard_normal((300, 400))
        found = layer_change("layer", BaseSpectrum.of(base, limits=LANCZOS), change, num_values=40, generator=generator)
        bound = 1e-13 * values[:40] * (values[0] / values[:40]) ** 2
        assert np.all(np.abs(found.singular_values - values[:40]) <= bound)
        assert (found.num_singular_values, found.effective_rank) == (300, None)
        assert found.change_norm == pytest.approx(np.linalg.norm(values), rel=1e-13)
        # 22 steps of 0.9 hold 1 - 0.81^22 = 99.0 %; of the slow one, 40 directions hold less than 90 %.
        assert found.rank_90 == (None if decay == "slow" else math.ceil(math.log(0.1) / math.log(0.81)))

    def test_equal_values_have_full_effective_rank(self) -> None:
        found = layer_change("layer", np.eye(10), orthogonal(10, draws()), generator=draws())
        assert found.effective_rank == pytest.approx(10, rel=1e-12)
        assert found.rank_90 == 9
        assert found.share_held(9) == pytest.approx(0.9, abs=1e-14)

    @pytest.mark.parametrize("limits", [Limits(), GRAM], ids=["svd", "gram"])
    def test_a_single_direction_is_one(self, limits: Limits) -> None:
        """Rounding spreads over all other singular values; it must not count as directions."""
        base = draws().standard_normal((60, 80))
        change = np.outer(draws(1).standard_normal(60), draws(2).standard_normal(80))
        found = layer_change("layer", BaseSpectrum.of(base, limits=limits), change, generator=draws())
        assert (found.effective_rank, found.rank_90) == (pytest.approx(1, abs=1e-10), 1)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_any_float_type_is_read_as_it_is(self, dtype: type) -> None:
        base, change = (draws(seed).standard_normal((20, 30)).astype(dtype) for seed in (0, 1))
        found = layer_change("layer", base, change, generator=draws())
        same = layer_change("layer", base.astype(np.float64), change.astype(np.float64), generator=draws())
        assert found == same


class TestLowRankChange:
    @pytest.mark.parametrize("layer", LAYERS)
    @pytest.mark.parametrize("limits", [Limits(), GRAM], ids=["svd", "gram"])
    def test_equals_the_dense_change(self, layer: str, limits: Limits) -> None:
        generator, base = draws(), weight(layer)
        b, a = generator.standard_normal((base.shape[0], 8)), generator.standard_normal((8, base.shape[1]))
        found = low_rank_change(layer, BaseSpectrum.of(base, limits=limits), b, a, 0.05, generator=generator)
        assert len(found.singular_values) == found.num_singular_values == 8
        change = 0.05 * b @ a
        expected = np.linalg.svd(change, compute_uv=False)[:8]
        np.testing.assert_allclose(found.singular_values, expected, rtol=1e-12)
        cosines = reference_cosines(base, change, 10)
        np.testing.assert_allclose(found.max_cosines, cosines, rtol=0, atol=1e-10 if limits == Limits() else 1e-8)
        full = layer_change(layer, base, change, generator=generator)
        for name in ("shape", "base_norm", "rank_90", "num_top", "num_intruders"):
            assert getattr(found, name) == getattr(full, name)
        assert found.change_norm == pytest.approx(full.change_norm, rel=1e-13)
        assert found.effective_rank == pytest.approx(full.effective_rank, rel=1e-9)

    def test_a_rank_above_the_width_adds_no_values(self) -> None:
        b, a = draws().standard_normal((6, 9)), draws(1).standard_normal((9, 20))
        found = low_rank_change("layer", np.ones((6, 20)), b, a, -2.0, generator=draws())
        np.testing.assert_allclose(found.singular_values, np.linalg.svd(-2 * b @ a, compute_uv=False), rtol=1e-12)
        assert found.num_singular_values == 6

    def test_an_untrained_adapter_changes_nothing(self) -> None:
        base = draws().standard_normal((20, 30))
        found = low_rank_change("layer", base, np.zeros((20, 4)), np.ones((4, 30)), 2.0, generator=draws())
        assert (found.change_norm, found.effective_rank, found.rank_90, found.share_held(1)) == (0, None, None, None)
        assert (found.singular_values, found.max_cosines, found.num_intruders) == ((0.0,) * 4, (1.0,) * 10, 0)


@pytest.mark.parametrize("limits", [Limits(), GRAM, Limits(svd_side=0, num_leading=3)], ids=["svd", "gram", "few"])
@pytest.mark.parametrize("shape", [(80, 80), (80, 120), (120, 80)])
class TestIntruders:
    """W has the singular values 80, 79, ..., in known directions; a planted change adds its own across many."""

    def planted(self, shape: tuple[int, int], num_values: int = 80) -> tuple[Array, Array, Array]:
        generator = draws(5)
        left, right = orthogonal(shape[0], generator), orthogonal(shape[1], generator)
        values = np.arange(num_values, 0, -1.0)
        return (left[:, :num_values] * values) @ right[:, :num_values].T, left, right

    def count(self, base: Array, change: Array, limits: Limits) -> LayerChange:
        spectrum = BaseSpectrum.of(base, limits=limits)
        return layer_change("layer", spectrum, change, generator=draws())

    @pytest.mark.parametrize("num_planted", [1, 2, 3])
    def test_exactly_the_planted_ones_are_found(self, shape: tuple[int, int], limits: Limits, num_planted: int) -> None:
        """Each planted direction is spread evenly over 16 weak ones of W: its cosine with each is 1/4."""
        base, left, right = self.planted(shape)
        spread = np.stack([left[:, 30 + 16 * i : 46 + 16 * i].sum(axis=1) / 4 for i in range(num_planted)], axis=1)
        other = np.stack([right[:, 30 + 16 * i : 46 + 16 * i].sum(axis=1) / 4 for i in range(num_planted)], axis=1)
        change = (spread * (1000.0 - 100 * np.arange(num_planted))) @ other.T
        found = self.count(base, change, limits)
        assert found.num_intruders == num_planted
        np.testing.assert_allclose(found.max_cosines[:num_planted], 0.25, atol=0.02)
        assert min(found.max_cosines[num_planted:]) > 0.99
        np.testing.assert_allclose(found.max_cosines, reference_cosines(base, change, 10), atol=1e-9)

    def test_a_small_change_plants_none(self, shape: tuple[int, int], limits: Limits) -> None:
        base, left, right = self.planted(shape)
        change = 0.05 * np.outer(left[:, 40:56].sum(axis=1), right[:, 40:56].sum(axis=1))
        found = self.count(base, change, limits)
        assert found.num_intruders == 0
        assert min(found.max_cosines) > 0.99

    def test_a_direction_of_the_base_is_none_whatever_its_size(self, shape: tuple[int, int], limits: Limits) -> None:
        base, left, right = self.planted(shape)
        found = self.count(base, 1000 * np.outer(left[:, 70], right[:, 70]), limits)
        assert found.num_intruders == 0
        np.testing.assert_allclose(found.max_cosines, 1, atol=1e-8)

    def test_a_direction_outside_a_deficient_base_is_one(self, shape: tuple[int, int], limits: Limits) -> None:
        """W has 60 directions; the null space is no direction of W, however it is cut."""
        base, left, right = self.planted(shape, 60)
        found = self.count(base, 1000 * np.outer(left[:, 70], right[:, 70]), limits)
        assert found.num_intruders == 1
        assert found.max_cosines[0] < 1e-6
        np.testing.assert_allclose(found.max_cosines[1:], 1, atol=1e-8)

    def test_a_base_of_zeros_has_no_directions(self, shape: tuple[int, int], limits: Limits) -> None:
        change, _, _ = self.planted(shape, 4)
        found = self.count(np.zeros(shape), change, limits)
        assert (found.base_norm, found.max_cosines, found.num_intruders) == (0, (0.0,) * 4, 4)

    def test_weights_that_were_wiped_out_have_none_to_look_at(self, shape: tuple[int, int], limits: Limits) -> None:
        base, _, _ = self.planted(shape)
        found = self.count(base, -base, limits)
        assert (found.num_top, found.max_cosines, found.num_intruders) == (0, (), 0)

    def test_no_change_leaves_every_direction(self, shape: tuple[int, int], limits: Limits) -> None:
        found = self.count(np.eye(*shape), np.zeros(shape), limits)
        assert (found.max_cosines, found.effective_rank, found.change_norm) == ((1.0,) * 10, None, 0)


def test_the_threshold_is_the_callers() -> None:
    """At 0.5, as PEFT has it, for changes from too small to dominant."""
    base = weight("attn.c_attn").astype(np.float64)
    b, a = draws().standard_normal((576, 4)), draws(1).standard_normal((4, 192))
    for scaling in (0.001, 0.01, 0.03, 0.1):
        found = low_rank_change("layer", base, b, a, scaling, threshold=0.5, generator=draws())
        assert found.num_intruders == np.sum(reference_cosines(base, scaling * b @ a, 10) < 0.5)


def test_a_spectrum_is_decomposed_once_for_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = draws().standard_normal((50, 70))
    spectrum = BaseSpectrum.of(base)
    alone = [layer_change("layer", base, draws(seed).standard_normal((50, 70)), generator=draws()) for seed in (1, 2)]
    assert layer_change("layer", spectrum, draws(1).standard_normal((50, 70)), generator=draws()) == alone[0]
    seen: list[Array] = []
    monkeypatch.setattr("scipy.linalg.svd", lambda matrix, **kw: seen.append(matrix) or np.linalg.svd(matrix, **kw))
    layer_change("layer", spectrum, draws(2).standard_normal((50, 70)), generator=draws())
    assert [np.array_equal(matrix, base) for matrix in seen] == [False]  # W + D alone


def test_the_lanczos_start_does_not_show() -> None:
    base, change = draws().standard_normal((90, 120)), draws(1).standard_normal((90, 120))
    one, other = (
        layer_change("layer", BaseSpectrum.of(base, limits=LANCZOS), change, num_values=20, generator=draws(seed))
        for seed in (1, 2)
    )
    np.testing.assert_allclose(one.singular_values, other.singular_values, rtol=1e-12)
    np.testing.assert_allclose(one.max_cosines, other.max_cosines, atol=1e-9)


class TestWhatIsRefused:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_numbers_that_are_not_finite(self, bad: float) -> None:
        broken = np.ones((4, 5))
        broken[2, 3] = bad
        good = np.ones((4, 5))
        for base, change, name in ((broken, good, "the base"), (good, broken, "the change")):
            with pytest.raises(ValueError, match=f"h.0: {name} has elements that are NaN, infinite"):
                layer_change("h.0", base, change, generator=draws())
        with pytest.raises(ValueError, match=r"h\.0: A has elements that are NaN"):
            low_rank_change("h.0", good, np.ones((4, 4)), broken, 1.0, generator=draws())
        with pytest.raises(ValueError, match=r"h\.0: the scaling is"):
            low_rank_change("h.0", good, np.ones((4, 1)), np.ones((1, 5)), bad, generator=draws())

    @pytest.mark.parametrize("shape", [(5, 4), (4, 4), (4,), (0, 5)])
    def test_shapes_that_do_not_fit(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"the change is of shape .*, but \(4, 5\) is needed"):
            layer_change("h.0", np.ones((4, 5)), np.ones(shape), generator=draws())

    def test_factors_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"B is of shape \(5, 2\), but \(4, any\)"):
            low_rank_change("h.0", np.ones((4, 5)), np.ones((5, 2)), np.ones((2, 5)), 1.0, generator=draws())
        with pytest.raises(ValueError, match=r"A is of shape \(3, 5\), but \(2, 5\)"):
            low_rank_change("h.0", np.ones((4, 5)), np.ones((4, 2)), np.ones((3, 5)), 1.0, generator=draws())

    def test_elements_that_are_no_floats(self) -> None:
        with pytest.raises(ValueError, match="elements of type int64"):
            layer_change("h.0", np.ones((4, 5), dtype=np.int64), np.ones((4, 5)), generator=draws())

    @pytest.mark.parametrize("setting", [{"num_top": 0}, {"num_values": 0}, {"threshold": 0.0}, {"threshold": 1.5}])
    def test_settings_out_of_range(self, setting: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="the counts are at least 1"):
            layer_change("h.0", np.ones((4, 5)), np.ones((4, 5)), generator=draws(), **setting)


class TestProperties:
    sizes = st.tuples(st.integers(2, 24), st.integers(2, 24))
    seeds = st.integers(0, 2**32 - 1)

    @given(shape=sizes, seed=seeds, strength=st.floats(0.01, 10))
    def test_rotating_both_changes_nothing(self, shape: tuple[int, int], seed: int, strength: float) -> None:
        """W and D in other coordinates of inputs and outputs; random matrices have no equal singular values."""
        generator = draws(seed)
        base, change = generator.standard_normal(shape), strength * generator.standard_normal(shape)
        turn, other = orthogonal(shape[0], generator), orthogonal(shape[1], generator)
        one = layer_change("layer", base, change, generator=generator)
        two = layer_change("layer", turn @ base @ other, turn @ change @ other, generator=generator)
        np.testing.assert_allclose(one.singular_values, two.singular_values, atol=1e-12 * one.singular_values[0])
        np.testing.assert_allclose(one.max_cosines, two.max_cosines, atol=1e-8)
        assert one.effective_rank == pytest.approx(two.effective_rank, rel=1e-10)
        assert (one.num_top, one.rank_90) == (two.num_top, two.rank_90)

    @given(shape=sizes, seed=seeds, factor=st.floats(1e-6, 1e6))
    def test_scaling_the_change_scales_its_values(self, shape: tuple[int, int], seed: int, factor: float) -> None:
        generator = draws(seed)
        base, change = generator.standard_normal(shape), generator.standard_normal(shape)
        one, two = (layer_change("layer", base, change * by, generator=generator) for by in (1.0, factor))
        np.testing.assert_allclose(np.array(one.singular_values) * factor, two.singular_values, rtol=1e-9)
        assert one.change_norm * factor == pytest.approx(two.change_norm, rel=1e-12)
        assert one.effective_rank == pytest.approx(two.effective_rank, rel=1e-10)
        assert one.rank_90 == two.rank_90

    @given(shape=sizes, seed=seeds, rank=st.integers(1, 30))
    def test_shares_grow_to_one(self, shape: tuple[int, int], seed: int, rank: int) -> None:
        generator = draws(seed)
        b, a = generator.standard_normal((shape[0], rank)), generator.standard_normal((rank, shape[1]))
        found = low_rank_change("layer", np.ones(shape), b, a, 1.0, generator=generator)
        shares = [found.share_held(count) or 0.0 for count in range(1, found.num_singular_values + 1)]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1, abs=1e-12)
        assert found.rank_90 == next(count for count, share in enumerate(shares, 1) if share >= 0.9)
        assert found.effective_rank is not None
        assert 1 <= found.effective_rank <= found.num_singular_values * (1 + 1e-12)
