"""The one exception that a user's mistake or a broken input raises."""


class UserError(Exception):
    """What the user gave cannot be used.

    The message is one line that names the thing, its value and what to do. The
    commands print it without a traceback and exit with status 1; library users can
    catch it as one type.
    """


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """What an error of another library says, as one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."
