"""What the sections of the parameters share."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def number(value: Any) -> Any:
    """A float for text that YAML should have read as one (2e-4).

    Args:
        value: Anything.

    Returns:
        The float, else the value itself.
    """
    try:
        return float(value)
    except ValueError:
        return value


class Section(BaseModel):
    """Frozen and strict; unknown names and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_floats(cls, values: Any) -> Any:
        # YAML reads 1 as an integer and 2e-4 (no dot) as text; both mean a float here.
        if not isinstance(values, dict):
            return values
        out = dict(values)
        for name, field in cls.model_fields.items():
            value = out.get(name)
            if field.annotation in (float, float | None) and isinstance(value, (int, str)):
                if isinstance(value, bool):
                    continue
                out[name] = number(value)
        return out
