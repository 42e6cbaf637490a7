"""What goes wrong while a base model is read, told in one sentence with its remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from tuneoff.errors import ModelError, TuneoffError
from tuneoff.training.out_of_memory import is_out_of_memory

UNAUTHORISED, FORBIDDEN, NOT_FOUND, TOO_MANY = 401, 403, 404, 429
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
TRANSPORTS = ("httpx", "httpcore", "requests", "urllib3")
"""Modules whose errors are about the way to the hub; which of them its client uses changes with its version."""
OFFLINE_WAYS = (
    "Give a local folder (`--set model=FOLDER`), or run once with a network so that the model is in the cache."
)


@contextmanager
def explained(name: str, what: str = "model") -> Iterator[None]:
    """Within the context whatever the libraries raise becomes one `ModelError`.

    Running out of memory passes through: it says nothing about the model, and the runner has an answer to it.

    Args:
        name: the model as the study names it.
        what: the part that is being read (`configuration`, `tokenizer`, `weights`).
    """
    try:
        yield
    except TuneoffError:
        raise
    except Exception as error:  # the tokenizers library raises `Exception` itself, so nothing narrower would do
        if is_out_of_memory(error):
            raise
        raise ModelError(f"model {name!r}: {_explain(error, name, what)}") from None


def _explain(error: BaseException, name: str, what: str) -> str:
    """Return what happened and what to do.

    The hub's answer is often wrapped, also in "not in the cache", so the whole chain is searched for an answer first.
    """
    for look in (_hub_answer, _no_answer):
        for link in _chain(error):
            found = look(link, name)
            if found:
                return found
    text = _first_line(error)
    if "trust_remote_code" in str(error):
        return (
            "it comes with Python code of its own, which is not run unless asked for. "
            "If you trust it, write `trust_remote_code: true` in the study."
        )
    return f"its {what} cannot be read ({text}). Check that the files are whole and made for Transformers."


def _hub_answer(error: BaseException, name: str) -> str | None:
    from huggingface_hub import errors as hub

    page = f"https://huggingface.co/{name}"
    # Order matters: the hub's "gated" derives from its "not found", and both from the HTTP error.
    if isinstance(error, hub.GatedRepoError):
        status = _status(error) or FORBIDDEN
        return f"access to it is restricted ({status}). Accept its conditions on {page}, then {LOG_IN}."
    if isinstance(error, hub.RepositoryNotFoundError):
        return (
            f"the hub shows no such model ({_status(error) or NOT_FOUND}), and there is no such folder here. "
            f"Check the spelling; if it is private, {LOG_IN}."
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return f"the hub has the model but not the revision that was asked for. See {page}/commits/main."
    if isinstance(error, hub.HfHubHTTPError) and not isinstance(error, hub.EntryNotFoundError):
        return _http_error(_status(error), page)
    return None


def _no_answer(error: BaseException, name: str) -> str | None:
    from huggingface_hub import errors as hub

    if isinstance(error, hub.HFValidationError):
        return f"{name!r} is neither a folder nor a hub id such as gpt2 or owner/name."
    offline = (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if isinstance(error, offline) or type(error).__module__.startswith(TRANSPORTS):
        return (
            f"the hub cannot be reached (no network, or offline mode), and the cache does not hold it. {OFFLINE_WAYS}"
        )
    return None


def _http_error(status: int | None, page: str) -> str:
    if status == UNAUTHORISED:
        return f"the hub refuses access without a valid token (401). For a gated or private model, {LOG_IN}."
    if status == FORBIDDEN:
        return (
            f"your token may not read it (403). Ask for access on {page}, then {LOG_IN} with a token that may read it."
        )
    if status == NOT_FOUND:
        return "the hub has no such model (404). Check the spelling."
    if status == TOO_MANY:
        return f"the hub asks for fewer requests (429). Wait a while, or {LOG_IN} for a higher limit."
    return f"the hub answered with an error ({status or 'no status'}). Try again later. {OFFLINE_WAYS}"


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text[:300]
