"""The one exception that a user's mistake or a broken input raises."""


class UserError(Exception):
    """What the user gave cannot be used.

    The message is one line that names the thing, its value and what to do. The
    commands print it without a traceback and exit with status 1; library users can
    catch it as one type.
    """
