"""A headless Chromium, driven over its DevTools protocol through a pipe: no port is opened and no library is needed.

Messages are JSON, ended by a zero byte, on the browser's file descriptors 3 (to it) and 4 (from it); see
https://chromedevtools.github.io/devtools-protocol/.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "TUNEOFF_CHROMIUM"
HEIGHT = 900
"""Of a window, in pixels."""
TIMEOUT_S = 60.0
"""How long the browser may take over one answer. It answers in milliseconds; a shared machine may stall."""
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # a container's root may not make one, and the page under test is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--force-color-profile=srgb",
)
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""The browser wants these two descriptors, which may be in use here."""


def find() -> str | None:
    """Return the Chromium of this machine, or none: `TUNEOFF_CHROMIUM`, else the usual names on the PATH."""
    if os.environ.get(VARIABLE):
        return shutil.which(os.environ[VARIABLE])
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """The browser's end of the pipe.

    Args:
        incoming: descriptor that answers and events are read from.
        outgoing: descriptor that calls are written to.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.events: list[dict[str, Any]] = []
        """Everything that the browser told without being asked, oldest first."""
        self._rest = b""
        self._last = 0

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._read(deadline, method)
            if answer.get("id") != self._last:
                self.events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{method}: {answer['error']}")
            else:
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.incoming], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"{method}: no answer from Chromium in {TIMEOUT_S:g} s")
            read = os.read(self.incoming, 1 << 20)
            if not read:
                raise AssertionError(f"{method}: Chromium ended")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        body: dict[str, Any] = json.loads(message)
        return body


class Tab:
    """One page in the browser, which notes down all that it says and asks for.

    Args:
        browser: the browser.
        url: what is opened.
        width: of the window, in pixels.
        is_phone: whether it is a phone's.
    """

    def __init__(self, browser: Browser, url: str, width: int = 1280, *, is_phone: bool = False) -> None:
        self.browser = browser
        self.url = url
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1}
        self.call("Emulation.setDeviceMetricsOverride", mobile=is_phone, **size)
        self.open()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol on this page."""
        return self.browser.call(method, self.session, **parameters)

    def open(self) -> None:
        """Open the page and wait until its charts are drawn."""
        self.call("Page.navigate", url=self.url)
        self.wait(f"location.href === {json.dumps(self.url)} && document.documentElement?.dataset.drawn === 'yes'")

    def close(self) -> None:
        """Close the page: one in the background is drawn late."""
        self.call("Page.close")

    def value(self, expression: str) -> Any:
        """Return what JavaScript says, as JSON types; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until JavaScript says that a condition holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.value(condition):
            if time.monotonic() > deadline:
                raise AssertionError(f"it did not come true in {TIMEOUT_S:g} s: {condition}")
            time.sleep(0.02)

    def said(self, *methods: str) -> list[dict[str, Any]]:
        """Return the parameters of this page's events of some kinds."""
        events = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in events if event["method"] in methods]

    def emulate(self, media: str = "", **features: str) -> None:
        """Show the page as on another medium, or to someone with other preferences (`prefers_color_scheme`)."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=media, features=named)


@contextmanager
def running(path: str, profile: Path, flags: Sequence[str] = FLAGS) -> Iterator[Browser]:
    """Run a Chromium within the context.

    Args:
        path: the program.
        profile: an empty folder of its own; also its home, so that nothing of the user's is read or written.
        flags: of its command line.
    """
    to_browser, outgoing = os.pipe()
    incoming, from_browser = os.pipe()
    theirs = (to_browser, from_browser)
    launch = [sys.executable, "-c", _LAUNCH, *map(str, theirs), path, *flags, f"--user-data-dir={profile}"]
    with (profile / "log.txt").open("wb") as log:
        environment: Mapping[str, str] = os.environ | {"HOME": str(profile)}
        process = subprocess.Popen(launch, pass_fds=theirs, stdout=log, stderr=log, env=environment)
    for descriptor in theirs:
        os.close(descriptor)
    browser = Browser(incoming, outgoing)
    try:
        yield browser
        browser.call("Browser.close")
        process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        os.close(incoming)
        os.close(outgoing)
