"""What is looked at by `tuneoff doctor`, one check each; nothing here needs torch to be installed, or to be whole."""

import os
import platform
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from tuneoff.files import user_cache

State = Literal["ok", "note", "broken"]

PACKAGE = "tuneoff"
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "datasets": "5.2.0",
    "huggingface-hub": "2.4.0",
}
"""Newest versions that the tests have run with (`constraints.txt`); the oldest ones are the package's own bounds."""
PYTHONS = ((3, 11), (3, 12))
OPTIONAL = {
    "bitsandbytes": ("bitsandbytes", "qlora", "a base held in 4 bits: arms with quantize: nf4"),
    "optuna": ("optuna", "optuna", "trials that fall behind are stopped: tuning: {search: halving}"),
    "tensorboard": ("tensorboard", "tensorboard", "learning curves in TensorBoard: trackers: tensorboard"),
    "wandb": ("wandb", "wandb", "learning curves in W&B: trackers: wandb"),
    "mlflow-skinny": ("mlflow", "mlflow", "learning curves in MLflow: trackers: mlflow"),
    "trackio": ("trackio", "trackio", "learning curves in Trackio: trackers: trackio"),
}
"""By distribution: module, extra of this package, and what it gives."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
TRUE = ("1", "ON", "YES", "TRUE")
HUB_S = 3.0
"""How long the hub may take to answer."""
LOW_BYTES = 2_000_000_000
"""Free disk below which a study of a real model soon ends."""
NO_BYTES = 20_000_000
"""Free disk below which not even records can be written."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        group: what it is about.
        name: what was looked at.
        found: what is there.
        state: ok; note, where something is less than it could be; broken, where no study can run.
        advice: what it means, or what to do.
    """

    group: str
    name: str
    found: str
    state: State = "ok"
    advice: str = ""


def gigabytes(num_bytes: float) -> str:
    """Return bytes in powers of 1000."""
    return f"{num_bytes / 1e9:.1f} GB"


def python_check() -> Check:
    """Look at the interpreter."""
    version = platform.python_version()
    if sys.version_info[:2] in PYTHONS:
        return Check("software", "Python", version)
    allowed = " and ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Check("software", "Python", version, "note", f"tested with {allowed}; make an environment with one of these")


def package_checks() -> Iterator[Check]:
    """Look at the versions of the libraries that every study needs."""
    bounds = _bounds()
    for name, tested in TESTED.items():
        found = _version(name)
        lowest = bounds.get(name, "")
        if found is None:
            yield Check("software", name, "not installed", "broken", f"pip install '{name}{lowest}'")
        elif lowest and not _within(found, lowest):
            yield Check("software", name, found, "broken", f"too old: pip install -U '{name}{lowest}'")
        elif _is_newer(found, tested):
            yield Check("software", name, found, "note", f"newer than what was tested ({tested}); most likely it works")
        else:
            yield Check("software", name, found)


def optional_checks() -> Iterator[Check]:
    """Look at packages that single features need."""
    for name, (module, extra, gives) in OPTIONAL.items():
        if util.find_spec(module) is None:
            yield Check("optional", name, "no", "ok", f"gives {gives}; pip install '{PACKAGE}[{extra}]'")
        else:
            yield Check("optional", name, _version(name) or "yes", "ok", gives)
    liger = "yes" if util.find_spec("liger_kernel") is not None else "no"
    yield Check(
        "optional", "liger-kernel", liger, "ok", "not used: the loss of the head is worked out in pieces without it"
    )


def limit_checks() -> Iterator[Check]:
    """Look at the memory and what limits it."""
    from tuneoff.training.machine import memory_bytes
    from tuneoff.training.memory_limits import available_bytes

    available = available_bytes()
    whole = memory_bytes()
    told = {"RAM": "what other programs leave", "cgroup": "the container's or the batch system's limit"}
    advice = told.get(available.source, "the limit on a process's address space (`ulimit -v`)")
    found = f"{gigabytes(available.num_bytes)} free of {gigabytes(whole)}"
    state: State = "note" if available.num_bytes < LOW_BYTES else "ok"
    yield Check("memory", "RAM for a run", found, state, f"bounded by {available.source}: {advice}")
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address != resource.RLIM_INFINITY:
        yield Check(
            "memory",
            "ulimit -v",
            gigabytes(address),
            "note",
            "libraries alone reserve some GB of it; unset it if you can",
        )


def folder_checks(out: Path) -> Iterator[Check]:
    """Look at the folders that are written to: free disk, and whether they can be."""
    found = _folder("results", out, is_needed=True, without="name another folder with --out")
    yield found
    yield _folder(
        "cache", user_cache(), is_needed=False, without="data are tokenised anew each time; set TUNEOFF_CACHE"
    )
    yield _folder(
        "hub cache", _hub_cache(), is_needed=False, without="nothing can be fetched from the hub; set HF_HOME"
    )


def _folder(name: str, path: Path, *, is_needed: bool, without: str) -> Check:
    path = path.expanduser().absolute()
    there = next((one for one in (path, *path.parents) if one.exists()), path)
    is_writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = 0
    found = f"{path}: {gigabytes(free)} free" + ("" if is_writable else ", not writable")
    worst: State = "broken" if is_needed else "note"
    if not is_writable:
        return Check("disk", name, found, worst, without)
    if free < NO_BYTES:
        return Check("disk", name, found, worst, f"the disk is full: make room, or {without}")
    if free < LOW_BYTES:
        return Check("disk", name, found, "note", "little room: full fine-tuning keeps a whole model for each run")
    return Check("disk", name, found)


def _hub_cache() -> Path:
    home = os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home) if home else Path(base) / "huggingface"


class HubCheck:
    """Asks whether the hub answers, in a thread of its own: a name server may take its time, whatever the timeout.

    Args:
        connect: opens a connection to a host and a port, for tests.
    """

    def __init__(self, connect: Callable[..., Any] = socket.create_connection) -> None:
        self._connect = connect
        self._answer: list[str] = []
        self._offline = [name for name in OFFLINE if os.environ.get(name, "").upper() in TRUE]
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if not self._offline:
            self._thread.start()

    def checks(self) -> Iterator[Check]:
        """Yield whether there is a token, and whether the hub answers; waits for `HUB_S` at most."""
        yield _token_check()
        if self._offline:
            advice = "models and data sets come from the cache alone; unset it to fetch others"
            yield Check("hub", "reachable", f"not asked: {self._offline[0]} is set", "ok", advice)
            return
        self._thread.join(HUB_S)
        answer = self._answer[0] if self._answer else f"no answer within {HUB_S:.0f} s"
        if answer == "yes":
            yield Check("hub", "reachable", answer)
        else:
            advice = "local models and data work; for others check the network or the proxy, or copy them here"
            yield Check("hub", "reachable", answer, "note", advice)

    def _ask(self) -> None:
        try:
            self._answer.append(self._connected())
        except Exception as error:  # a thread's error would be lost
            self._answer.append(f"no ({type(error).__name__})")

    def _connected(self) -> str:
        hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        host, port = hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443)
        proxy = urlsplit(getproxies().get(hub.scheme, ""))
        if proxy.hostname:
            self._connect((proxy.hostname, proxy.port or 80), timeout=HUB_S).close()
            return "yes"  # the proxy answers; what lies behind it only a download would tell
        self._connect((host, port), timeout=HUB_S).close()
        return "yes"


def _token_check() -> Check:
    """Say whether there is a token; never which."""
    try:
        from huggingface_hub import get_token

        has_token = get_token() is not None
    except Exception as error:
        return Check(
            "hub", "token", f"cannot be told ({type(error).__name__})", "note", "pip install -U huggingface-hub"
        )
    if has_token:
        return Check("hub", "token", "yes")
    return Check("hub", "token", "no", "ok", "needed for gated models (Llama) alone: `hf auth login`, or set HF_TOKEN")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _bounds() -> dict[str, str]:
    """Return the versions that this package asks for, by name, such as `>=2.11`."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        return {}
    return {one.name: str(one.specifier) for one in asked if one.marker is None}


def _within(version: str, bound: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(bound).contains(version, prereleases=True)


def _is_newer(version: str, tested: str) -> bool:
    """Whether a version is above the tested one by more than its last part."""
    from packaging.version import Version

    return Version(version).release[:2] > Version(tested).release[:2]
