"""Checks of the numbers in a recipe.

If a check fails, the ``UserError`` names the value and what it must be.
"""

import math
import numbers
import re
from typing import Any

from cifar_flax.errors import UserError

# Rates and penalties are float32 in the compiled program, steps int32. Below the
# smallest normal number a rate would silently be 0.
MIN_FLOAT, MAX_FLOAT = 1.2e-38, 3.4e38
MAX_STEPS = 2**31 - 1
MAX_SHARE = 1 - 2**-24  # float32 rounds any number closer to 1 to 1


def require(condition: bool, name: str, value: Any, must: str) -> None:
    """Raises a UserError unless a condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {must}")


def require_float(value: Any, name: str, least: float = 0.0) -> None:
    """Raises a UserError if float32 cannot hold a value or it is below ``least``."""
    normal = is_number(value) and (value == 0 or MIN_FLOAT <= value <= MAX_FLOAT)
    must = f"from {MIN_FLOAT:g} to {MAX_FLOAT:g}"
    must = f"0, or {must}" if least == 0 else must
    require(normal and value >= least, name, value, must)


def require_whole(value: Any, name: str, most: int = MAX_STEPS) -> None:
    """Raises a UserError unless a value is a whole number from 1 to ``most``."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    must = f"a whole number from 1 to {most}"
    require(whole and 1 <= value <= most, name, value, must)


def require_epochs(value: Any, name: str = "epochs") -> None:
    """Raises a UserError unless a value is a number of epochs above 0."""
    good = is_number(value) and math.isfinite(value) and 0 < value <= MAX_STEPS
    require(good, name, value, f"a number above 0, to {MAX_STEPS}")


def require_share(value: Any, name: str) -> None:
    """Raises a UserError unless a value is in [0, 1)."""
    good = is_number(value) and 0 <= value <= MAX_SHARE
    require(good, name, value, "in [0, 1)")


def require_pattern(value: Any, name: str) -> None:
    """Raises a UserError unless a value is a regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise UserError(
            f"{name} is {value!r}, which is not a regular expression: {error}"
        ) from error


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
