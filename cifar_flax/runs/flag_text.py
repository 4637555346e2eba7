"""Converts values to the text of flags."""

from typing import Any

import msgspec


def as_text(value: Any) -> str:
    """Returns a value as the text of a flag."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return str(value).lower() if isinstance(value, bool) else str(value)
