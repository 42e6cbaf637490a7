r"""Intruder dimensions: leading directions of a tuned matrix that are like none of the base's.

Source: Shuttleworth, Andreas, Torralba and Sharma, 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence",
arXiv:2410.21228, section 3 and algorithm 1. With $W = U \Sigma V^T$, the left singular vectors $x_i$ of $W$ and $y_j$
of $W + D$, the vector $y_j$ is an intruder dimension where

$$\max_i |x_i^T y_j| < \epsilon,$$

over all left singular vectors of W; the first k of the $y_j$ are looked at.

The paper, and PEFT's `reduce_intruder_dimension` after it, take k = 10; PEFT's $\epsilon$ is 0.5. Both are the caller's
to say, and the cosines themselves are returned, so that any other threshold can be applied afterwards.

Departures from the paper:

- The sign of a singular vector is arbitrary, so the absolute cosine counts (as in PEFT).
- A vector whose singular value is zero (up to rounding) is arbitrary within the null space. Such an $x_i$ is not held
  against anything, and such a $y_j$ is not looked at. Where W is zero every direction is an intruder.
- Where D is zero nothing changed: every cosine is 1, also where the vectors are not unique.

Where singular values of W are equal, or nearer than rounding, any basis of their common subspace is as good, and the
cosine with single vectors depends on which one the decomposition returns; so does the count. It is a property of the
definition, not of the way it is worked out. In matrices from training, values differ.

**Which side.** Left vectors, (out,), for every shape: directions of the layer's output. For out <= in they are the
eigenvectors of $W W^T$. For out > in that matrix would be (out, out); from the eigenvectors $v_i$ of $W^T W$, (in, in),
$x_i = W v_i / \sigma_i$ and $y_j = (W + D) v'_j / \sigma'_j$, so $x_i^T y_j = v_i^T (W^T y_j) / \sigma_i$: the same
cosines of the same left vectors, without the (out, in) matrix of all $x_i$. Right vectors are never compared.
"""

from functools import cached_property

import numpy as np
import scipy.linalg

from tuneoff.analysis.weights.columns import Array, Columns, Matrix, checked, dense, finite_norm
from tuneoff.analysis.weights.spectrum import EPSILON, Limits, leading_eigenpairs, roots

WEAK = 1e-3
"""A singular value from a Gram matrix that is a lesser share of the largest is off by 1e-10 of itself, or by more."""


class BaseSpectrum:
    """The left singular vectors of a base matrix W, worked out when first needed, and once for all arms and seeds.

    It keeps W as it was given, and of a large W (see `Limits`) the Gram matrix or all singular vectors of the shorter
    side: 134 MB for 4096. It is no record: it is made for a layer, used for every change of that layer, and dropped.

    Args:
        base: W, (out, in), of real floats.
        limits: up to which size it is decomposed whole.
        module: name of the layer, for messages.

    Raises:
        ValueError: not a matrix of real, finite numbers.
    """

    def __init__(self, base: Array, *, limits: Limits | None = None, module: str = "base") -> None:
        self.base = checked(module, "the base", base)
        self.limits = limits or Limits()
        self.shape: tuple[int, int] = (self.base.shape[0], self.base.shape[1])
        self.is_flipped = self.shape[0] > self.shape[1]
        """Whether the transpose is the wide matrix that is worked with."""
        self.wide = dense(self.base, is_flipped=self.is_flipped)
        self.norm = finite_norm(module, "the base", self.wide)
        self._leading: Matrix | None = None

    @classmethod
    def of(cls, base: Array, *, limits: Limits | None = None, module: str = "base") -> "BaseSpectrum":
        """Return the spectrum of W; nothing is decomposed yet."""
        return cls(base, limits=limits, module=module)

    @property
    def is_small(self) -> bool:
        """Whether it is decomposed whole."""
        return self.limits.is_small(*self.shape)

    def max_cosines(self, change: Columns, num_top: int, generator: np.random.Generator) -> tuple[float, ...]:
        """Return, for each leading left singular vector of W + D, the largest absolute cosine with any of W's.

        Args:
            change: D in the orientation of `wide`.
            num_top: how many leading vectors; fewer are returned where W + D has a lower rank.
            generator: draws the start of the Lanczos method; it moves the last bits only.
        """
        tuned = self._tuned_vectors(self.wide.plus(change), num_top, generator)
        count: int = tuned.shape[1]
        if count == 0 or self.norm == 0:
            return (0.0,) * count
        return tuple(min(1.0, float(value)) for value in self._largest(tuned, generator))

    def _largest(self, tuned: Matrix, generator: np.random.Generator) -> Matrix:
        """Largest absolute cosines of the columns of `tuned`, (out, k), with any left singular vector of W.

        What is left of a unit vector outside K orthonormal ones has the norm sqrt(1 - sum of their squared cosines),
        and no further vector can have a larger cosine. Where the largest among the K is at least that, it is the
        largest of all, and the rest need not be known. It nearly always is, unless there are intruders.
        """
        if self.is_small:
            return _largest_of(self._all_left.T @ tuned)
        if "_all_short" not in self.__dict__:
            cosines = self._leading_vectors(generator).T @ tuned
            best = _largest_of(cosines)
            if (best**2 >= 1 - np.sum(cosines**2, axis=0)).all():
                return best
        vectors, values = self._all_short
        if not self.is_flipped:
            return _largest_of(vectors.T @ tuned)
        return _largest_of(vectors.T @ self.wide.times(tuned) / values[:, None])

    def _tuned_vectors(self, tuned: Columns, num_top: int, generator: np.random.Generator) -> Matrix:
        """Leading left singular vectors of W + D as columns, (out, k), without those of singular value zero."""
        side = tuned.num_rows
        if self.is_small:
            return self._left_vectors(tuned)[:, :num_top]
        gram = tuned.gram()
        if not gram.any():
            return np.zeros((self.shape[0], 0))
        eigenvalues, vectors = leading_eigenpairs(gram, min(num_top, side), generator)
        vectors = vectors[:, roots(eigenvalues, side) > 0]
        return _through(tuned, vectors) if self.is_flipped else vectors

    def _leading_vectors(self, generator: np.random.Generator) -> Matrix:
        """The first left singular vectors of a large W, (out, K)."""
        if self._leading is None:
            count = min(self.limits.num_leading, len(self._gram))
            eigenvalues, vectors = leading_eigenpairs(self._gram, count, generator)
            vectors = vectors[:, roots(eigenvalues, len(self._gram)) > 0]
            self._leading = _through(self.wide, vectors) if self.is_flipped else vectors
        return self._leading

    def _left_vectors(self, wide: Columns) -> Matrix:
        """All left singular vectors of a small matrix, (out, rank)."""
        left, values, right = scipy.linalg.svd(wide.whole(), full_matrices=False)
        known = values > max(self.shape) * EPSILON * values[0]
        return np.asarray(right[known].T if self.is_flipped else left[:, known])

    @cached_property
    def _gram(self) -> Matrix:
        """Of the shorter side, (m, m)."""
        return self.wide.gram()

    @cached_property
    def _all_left(self) -> Matrix:
        """All left singular vectors of a small W, (out, rank)."""
        return self._left_vectors(self.wide)

    @cached_property
    def _all_short(self) -> tuple[Matrix, Matrix]:
        """All singular vectors of the shorter side of a large W, (m, rank), and the singular values."""
        eigenvalues, vectors = scipy.linalg.eigh(self._gram, overwrite_a=True, driver="evd")
        del self.__dict__["_gram"]  # overwritten, and no longer needed
        values = roots(eigenvalues[::-1], len(eigenvalues))
        vectors, values = vectors[:, ::-1][:, values > 0], values[values > 0]
        weak = values < WEAK * values[0]
        values[weak] = np.linalg.norm(self.wide.transposed_times(vectors[:, weak]), axis=0)
        return vectors, values


def _largest_of(cosines: Matrix) -> Matrix:
    return np.asarray(np.abs(cosines).max(axis=0))


def _through(wide: Columns, vectors: Matrix) -> Matrix:
    """Turn singular vectors of the shorter side, (m, k), into those of the longer, (n, k)."""
    turned = wide.transposed_times(vectors)
    return np.asarray(turned / np.linalg.norm(turned, axis=0))
