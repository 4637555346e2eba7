"""Exports a finished run to files for other programs, and checks the files."""

from experiments import start

if __name__ == "__main__":
    start("export")
