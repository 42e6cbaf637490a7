"""What every value of a study and its records is: frozen, and strict about its keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def plain(value: Value) -> dict[str, Any]:
    """Return `value` as JSON types, without what is not part of its identity."""
    return value.model_dump(mode="json")
