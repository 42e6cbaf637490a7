"""A disk that runs full in the middle of a study: nothing is torn, and one clear error says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuneoff.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException) -> bool:
    """Whether something could not be written for want of room; the writer of safetensors says so by a text alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {code})" in str(error) for code in FULL)


@contextmanager
def full_disk_is_told(folder: Path) -> Iterator[None]:
    """Within the context a disk that is full, a quota or a limit on files, is one clear error.

    Args:
        folder: what is written to.

    Raises:
        StoreError: what could not be written for want of room.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise full_disk(folder, error) from None


def full_disk(folder: Path, error: BaseException) -> StoreError:
    """Return the error that says so."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(
        f"{folder}: there is no room left to write ({why}). What is finished is whole. Make room, and the same command "
        "goes on from the last checkpoints; --set keep=none keeps no weights of full fine-tuning."
    )
