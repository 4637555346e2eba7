"""Prints the settings of the flags of ``experiments.run`` as JSON."""

import json

from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings, settings_from_flags


def main():
    with cli.command():
        print(json.dumps(settings_from_flags().record()))


if __name__ == "__main__":
    define_settings()
    main()
