"""Flags that name something, such as a path; without JAX."""

import unicodedata

from absl import flags

PRINTABLE = "a text that is not empty, of characters that can be printed"

# Control characters, separators of lines and paragraphs, bytes that are no UTF-8.
UNUSABLE = ("Cc", "Zl", "Zp", "Cs")


class Text(flags.ArgumentParser):
    """Takes a text that can name something, as it is."""

    syntactic_help = "a path or a name"

    def parse(self, argument: str) -> str:
        """The text itself; ValueError where it can name nothing."""
        kinds = map(unicodedata.category, argument)
        if not argument.strip() or any(kind in UNUSABLE for kind in kinds):
            raise ValueError(f"give {PRINTABLE}")
        return argument


def define_text(name: str, default: str | None, help_text: str) -> None:
    """Defines such a flag."""
    flags.DEFINE(Text(), name, default, help_text)
