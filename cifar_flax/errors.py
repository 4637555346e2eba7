"""The exception for mistakes of the user and for damaged input."""

import re
from typing import Any


class UserError(Exception):
    """The user's input cannot be used.

    The message is one line that names the thing, its value and what to do. The commands
    print it without a traceback and exit with status 1. Users of the library can catch
    this one type.
    """


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """Returns the message of an error as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def in_words(value: Any) -> str:
    """Returns a value as text in a line, equal in every process."""
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(in_words, value))) + "}"
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # a user's class may raise anything
        text = type(value).__name__
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return " ".join(text.encode(errors="backslashreplace").decode().split())
