"""Compares the finished runs below a folder: report.md, report.html and tables."""

from experiments import start

if __name__ == "__main__":
    start("report")
