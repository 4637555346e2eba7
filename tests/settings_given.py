"""Prints the settings that the flags of ``experiments.run`` give, as JSON."""

import dataclasses
import json

from experiments import cli, config


def main():
    print(json.dumps(dataclasses.asdict(config.config_from_flags())))


if __name__ == "__main__":
    config.define_flags()
    cli.main(main)
