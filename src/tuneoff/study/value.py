"""What every value of a study and its records is: frozen, and strict about its keys."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth_value(value: Any) -> Any:
    """YAML reads `yes` and `on` as true, which Python takes for 1."""
    if isinstance(value, bool):
        raise ValueError(f"Input should be a number, not a truth value; found {str(value).lower()}")
    return value


LARGEST = 2**31
"""No tensor is as large along one side."""
PositiveInt = Annotated[int, BeforeValidator(_no_truth_value), Field(gt=0, lt=LARGEST)]
"""A count or a size."""
PositiveCount = Annotated[int, BeforeValidator(_no_truth_value), Field(gt=0, lt=2**53)]
"""A count that may be larger than that, and is still a whole number in every program that reads JSON."""


class Value(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def plain(value: Value) -> dict[str, Any]:
    """Return `value` as JSON types, without what is not part of its identity."""
    return value.model_dump(mode="json")
