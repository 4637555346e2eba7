"""The exception for mistakes of the user and for damaged input."""


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
