"""Rows of the hub's data sets, through `datasets`; whichever way the hub refuses, one error names the remedy."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tuneoff.data.formats import Row
from tuneoff.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?(:[\w.-]{1,96})?(@[\w./-]{1,96})?", re.ASCII)
"""`owner/name` or `name`, after a colon the configuration where the data set has several, and after an at sign the
revision that is pinned: a commit, a tag or a branch.
"""
COMMIT = re.compile(r"@([0-9a-f]{40})/")

LOCAL = "or give a local file instead (task.data: path/to/rows.jsonl)"


def read_hub(source: str, split: str, limit: int | None, trust_remote_code: bool = False) -> list[Row]:
    """Read one split of a hub data set; `HF_HUB_OFFLINE=1` takes it from the local cache alone.

    Args:
        source: hub id, with `:configuration` after it where there are several, and `@revision` where one is pinned.
        split: a split's name, or a slice such as `train[:10%]`.
        limit: rows read at most.
        trust_remote_code: whether the study allows code from the hub; only for the error, as `datasets` 4 and later run
            none.

    Raises:
        DataError: the data set or the split cannot be had.
    """
    label = f"{source}, split {split}"
    rows = _load(source, split, trust_remote_code)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    found = [Row(dict(values), label, number) for number, values in enumerate(rows, start=1)]
    if not found:
        raise DataError("is empty: expected at least one row", file=label)
    return found


def read_class_names(source: str, split: str, column: str, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the names that the hub gives to the integers 0, 1, ... of a column; none where it gives none.

    Raises:
        DataError: the data set or the split cannot be had.
    """
    rows = _load(source, split, trust_remote_code)
    return tuple(getattr(rows.features.get(column), "names", None) or ())


def split_names(source: str) -> tuple[str, ...]:
    """Return the splits that a data set of the hub has.

    Args:
        source: as in `read_hub`.

    Raises:
        DataError: the data set cannot be had.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    rest, _, revision = source.partition("@")
    name, _, configuration = rest.partition(":")
    try:
        with _quiet():
            return tuple(datasets.get_dataset_split_names(name, configuration or None, revision=revision or None))
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise DataError(_explain(error, "train", False), file=source) from None


def read_commit(source: str, split: str, trust_remote_code: bool = False) -> str:
    """Return the commit of the hub that a split was read from; empty where the library does not say.

    Raises:
        DataError: the data set or the split cannot be had.
    """
    info = getattr(_load(source, split, trust_remote_code), "info", None)
    files = getattr(info, "download_checksums", None) or {}  # by address, which holds the commit
    return next((found[1] for address in files if (found := COMMIT.search(str(address)))), "")


def _load(source: str, split: str, trust_remote_code: bool) -> "Dataset":
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    rest, _, revision = source.partition("@")
    name, _, configuration = rest.partition(":")
    pinned = {"revision": revision} if revision else {}
    try:
        with _quiet():
            return datasets.load_dataset(name, configuration or None, split=split, **pinned)
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise DataError(_explain(error, split, trust_remote_code), file=source) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client's lines about each retry off the screen: the one error says it all."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


def _explain(error: Exception, split: str, trust_remote_code: bool) -> str:
    """What happened and what to do; the hub's libraries tell the cases apart only in their texts."""
    text = _flat(error)
    if re.search(r"unknown split", text, re.IGNORECASE):
        allowed = re.findall(r"'([^']+)'", text.partition("one of")[2])
        hint = did_you_mean(split, allowed)
        return f"has no split {split!r}; it has {', '.join(allowed)}. Name them under task.splits.{hint}"
    if re.search(r"config name is missing|BuilderConfig", text, re.IGNORECASE):
        return f"has several configurations: write the one that is meant after a colon, ID:CONFIGURATION. {text}"
    if re.search(r"scripts? (is|are) no longer supported|trust_remote_code", text, re.IGNORECASE):
        also = ", also with trust_remote_code," if trust_remote_code else ""
        return f"comes as a Python script, which{also} is not run. Take a copy in Parquet, {LOCAL}."
    return _explain_access(error, text)


def _explain_access(error: Exception, text: str) -> str:
    kinds = {cls.__name__ for cls in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in kinds or status in (401, 403) or re.search(r"gated (dataset|repo)|\b40[13]\b", text):
        return (
            "the hub refused access: the data set is gated or private. Accept its licence on its page at"
            f" https://huggingface.co/datasets and run `hf auth login` (or set HF_TOKEN), {LOCAL}."
        )
    if "OfflineModeIsEnabled" in text:
        return (
            "is not in the local cache, and HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) forbids the network."
            f" Unset it, {LOCAL}."
        )
    if (
        "ConnectionError" in kinds
        or "ConnectError" in kinds
        or re.search(r"reach|LocalEntryNotFound|timed? ?out", text)
    ):
        return f"the hub cannot be reached, and the data set is not in the local cache. Check the network, {LOCAL}."
    if {"RepositoryNotFoundError", "DatasetNotFoundError"} & kinds or status == 404:
        return (
            "no data set of that name is on the hub, or it is private. Check the id, run `hf auth login` if it is"
            f" private, {LOCAL}."
        )
    return f"cannot be loaded from the hub: {text}. Check the id, {LOCAL}."


def _flat(error: Exception) -> str:
    text: Any = " ".join(str(error).split())
    return str(text[:400]).rstrip(".")
