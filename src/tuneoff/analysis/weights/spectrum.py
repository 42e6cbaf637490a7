r"""Singular values of a weight change, and what is read off them.

Three ways, by size (see `Limits`); m is the shorter side and n the longer.

1. **Singular value decomposition** in float64 (LAPACK). Error of a singular value: about 1e-15 of the largest.
2. **All eigenvalues of the Gram matrix** $D D^T$ of the shorter side, (m, m), in float64. Since
   $\lambda_i = \sigma_i^2$, the relative error of $\sigma_i$ is about $10^{-15} (\sigma_1 / \sigma_i)^2$: 1e-11 for a
   value that is a hundredth of the largest, and nothing is known of one below $\sqrt{m \varepsilon}\,\sigma_1$ (1e-6 of
   the largest), which counts as 0.
3. **The leading eigenvalues** of the same matrix by an implicitly restarted Lanczos method (ARPACK; Lehoucq, Sorensen
   and Yang, 1998) to machine precision. What needs all of them (the effective rank) is not given.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from tuneoff.analysis.weights.columns import Columns, Matrix

EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Limits:
    """Up to which size a matrix is decomposed in which way; the defaults take seconds a layer on two cores."""

    svd_side: int = 1024
    """Shorter side up to which the singular value decomposition is worked out whole."""
    svd_elements: int = 2**24
    """Elements up to which it is: the left vectors of an embedding would be as large as the embedding."""
    gram_side: int = 4096
    """Shorter side up to which all eigenvalues of a change's Gram matrix are worked out."""
    num_leading: int = 64
    """Singular vectors of a large base that are tried before all of them are worked out."""

    def is_small(self, num_rows: int, num_columns: int) -> bool:
        """Whether a matrix of this shape is decomposed whole."""
        return min(num_rows, num_columns) <= self.svd_side and num_rows * num_columns <= self.svd_elements


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix, the largest first."""

    values: Matrix
    """Those that were worked out; not negative."""
    count: int
    """How many the matrix has."""
    norm: float
    """Frobenius norm of the matrix, whatever was worked out."""

    @cached_property
    def effective_rank(self) -> float | None:
        r"""The effective rank (Roy and Vetterli, 2007, "The effective rank", section 2, definition 1).

        $\exp(-\sum_i p_i \ln p_i)$ with $p_i = \sigma_i / \sum_k \sigma_k$ and $0 \ln 0 = 0$: n for n equal singular
        values, 1 for a single one. None where the matrix is zero, or where not all values were worked out.
        Departures from the paper: none.
        """
        if self.norm == 0 or len(self.values) < self.count:
            return None
        shares = self.values[self.values > 0] / self.values.sum()
        return math.exp(-float(np.sum(shares * np.log(shares))))

    def rank_holding(self, share: float) -> int | None:
        """Return the least rank whose best approximation holds this share of the squared norm (Eckart and Young, 1936).

        None where the matrix is zero, or where more values would be needed than were worked out.

        Args:
            share: above 0, below 1.
        """
        if self.norm == 0:
            return None
        # A part in 1e12 less, so that rounding does not ask for one more where a sum meets the share exactly.
        enough = np.cumsum(self.values**2) >= share * self.norm**2 * (1 - 1e-12)
        return int(np.argmax(enough)) + 1 if enough.any() else None


def singular_values(
    matrix: Columns, norm: float, num_values: int, limits: Limits, generator: np.random.Generator
) -> Spectrum:
    """Return the spectrum of a matrix with no more rows than columns, worked out as its size allows.

    Args:
        matrix: D, or its transpose, whichever is the wide one.
        norm: its Frobenius norm.
        num_values: how many leading values are wanted where not all are worked out.
        limits: what its size allows.
        generator: draws the start of the Lanczos method; it moves the last bits only.
    """
    side = matrix.num_rows
    if norm == 0:
        return Spectrum(np.zeros(side), side, 0.0)
    if limits.is_small(side, matrix.num_columns):
        return Spectrum(scipy.linalg.svdvals(matrix.whole()), side, norm)
    gram = matrix.gram()
    if side <= limits.gram_side:
        return Spectrum(roots(scipy.linalg.eigvalsh(gram, overwrite_a=True)[::-1], side), side, norm)
    eigenvalues, _ = leading_eigenpairs(gram, min(num_values, side), generator)
    return Spectrum(roots(eigenvalues, side), side, norm)


def factored_singular_values(left: Matrix, right: Matrix) -> Spectrum:
    r"""Return all singular values of B A through its factors, without forming it.

    With $B = Q_B R_B$ and $A^T = Q_A R_A$, $B A = Q_B (R_B R_A^T) Q_A^T$, and the columns of the Qs are orthonormal:
    its singular values are those of the r x r matrix in the middle, and zeros.

    Args:
        left: B, (out, r).
        right: A, (r, in).
    """
    upper, lower = (scipy.linalg.qr(factor, mode="economic")[1] for factor in (left, right.T))
    values = scipy.linalg.svdvals(upper @ lower.T)
    return Spectrum(values, len(values), float(np.linalg.norm(values)))


def leading_eigenpairs(gram: Matrix, count: int, generator: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return the `count` largest eigenvalues of a symmetric matrix, the largest first, and their vectors as columns.

    By Lanczos to machine precision; directly where many are asked for, or where Lanczos does not get there.

    Args:
        gram: (m, m), not zero.
        count: from 1 to m.
        generator: draws the start of the Lanczos method.
    """
    side = len(gram)
    if 3 * count < side:  # it keeps twice as many vectors as are asked for
        try:
            values, vectors = eigsh(gram, k=count, tol=0, v0=generator.standard_normal(side))
        except ArpackNoConvergence:  # values too near each other; slower, and certain
            pass
        else:
            order = np.argsort(values)[::-1]
            return values[order], vectors[:, order]
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(side - count, side - 1))
    return values[::-1], vectors[:, ::-1]


def roots(eigenvalues: Matrix, side: int) -> Matrix:
    """Return singular values from the eigenvalues of a Gram matrix; 0 for those that are all rounding.

    Args:
        eigenvalues: the largest first.
        side: rows of the Gram matrix.
    """
    known = np.where(eigenvalues > side * EPSILON * eigenvalues[0], eigenvalues, 0.0)
    return np.asarray(np.sqrt(known))
