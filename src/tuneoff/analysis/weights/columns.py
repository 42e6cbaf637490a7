"""A matrix that is read a block of columns at a time, in float64, so that a large one is never copied whole.

A weight matrix of an 8B model is 235 MB in float32 and twice that in float64; its change and their sum would be as
large again. Norms, products and Gram matrices need a block at a time.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Matrix: TypeAlias = NDArray[np.float64]

BLOCK = 1024
"""Columns read at a time: 32 MB of a matrix with 4096 rows."""


@dataclass(frozen=True)
class Columns:
    """A matrix of `num_rows` x `num_columns`, and how its columns are read."""

    num_rows: int
    num_columns: int
    part: Callable[[slice], Matrix]
    """Returns the columns of a slice, in float64."""

    def blocks(self) -> Iterator[tuple[slice, Matrix]]:
        """Yield each block with its place."""
        for start in range(0, self.num_columns, BLOCK):
            place = slice(start, min(start + BLOCK, self.num_columns))
            yield place, self.part(place)

    def whole(self) -> Matrix:
        """Return the matrix."""
        return self.part(slice(0, self.num_columns))

    def norm(self) -> float:
        """Return the Frobenius norm; NaN or infinite where an element is."""
        return math.sqrt(sum(float(np.vdot(block, block)) for _, block in self.blocks()))

    def gram(self) -> Matrix:
        """Return M M^T, (num_rows, num_rows)."""
        total = np.zeros((self.num_rows, self.num_rows))
        for _, block in self.blocks():
            total += block @ block.T
        return total

    def times(self, right: Matrix) -> Matrix:
        """Return M X for X of (num_columns, k)."""
        total = np.zeros((self.num_rows, right.shape[1]))
        for place, block in self.blocks():
            total += block @ right[place]
        return total

    def transposed_times(self, right: Matrix) -> Matrix:
        """Return M^T Y for Y of (num_rows, k)."""
        return np.concatenate([block.T @ right for _, block in self.blocks()])

    def plus(self, other: "Columns") -> "Columns":
        """Return the sum with a matrix of the same shape."""
        return Columns(self.num_rows, self.num_columns, lambda place: self.part(place) + other.part(place))


def dense(matrix: Array, *, is_flipped: bool = False) -> Columns:
    """Return a stored matrix, or its transpose, as columns."""
    turned = matrix.T if is_flipped else matrix
    return Columns(turned.shape[0], turned.shape[1], lambda place: turned[:, place].astype(np.float64))


def product(left: Matrix, right: Matrix, *, is_flipped: bool = False) -> Columns:
    """Return B A, or its transpose, as columns; the product is formed a block at a time.

    Args:
        left: B, (out, r).
        right: A, (r, in).
        is_flipped: whether A^T B^T is meant.
    """
    if is_flipped:
        left, right = right.T, left.T
    return Columns(left.shape[0], right.shape[1], lambda place: left @ right[:, place])


def checked(module: str, name: str, matrix: Array, shape: tuple[int | None, int | None] = (None, None)) -> Array:
    """Return `matrix` if it is one of real floats and of this shape.

    Args:
        module: the layer, for the message.
        name: what the matrix is, for the message.
        matrix: what was given.
        shape: rows and columns that it must have; none where any number will do.

    Raises:
        ValueError: it is not; the message says what was found.
    """
    found = np.asarray(matrix)
    if not np.issubdtype(found.dtype, np.floating):
        raise ValueError(
            f"{module}: {name} has elements of type {found.dtype}; float16, float32 and float64 are read. Convert it "
            "first (bfloat16 fits float32 exactly)."
        )
    wanted = tuple("any" if size is None else str(size) for size in shape)
    fits = found.ndim == 2 and all(size in (None, have) for size, have in zip(shape, found.shape, strict=True))
    if not fits or 0 in found.shape:
        raise ValueError(
            f"{module}: {name} is of shape {found.shape}, but ({', '.join(wanted)}) is needed, out x in and none of "
            "them 0. A layer that stores its weight as in x out (Conv1D) is transposed first."
        )
    return found


def finite_norm(module: str, name: str, columns: Columns) -> float:
    """Return the Frobenius norm.

    Raises:
        ValueError: an element is NaN or infinite, or too large to be squared.
    """
    norm = columns.norm()
    if not math.isfinite(norm):
        raise ValueError(
            f"{module}: {name} has elements that are NaN, infinite, or above 1e150; it has no singular values. Look "
            "for where the run diverged."
        )
    return norm
