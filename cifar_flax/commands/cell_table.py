"""Shows the cells of a sweep while they train."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.table import Table

from cifar_flax.sweeps.cells import MAX_ROWS, Cell, pace_of, state_of

REFRESH_SECONDS = 0.2  # of the table on a terminal


@contextlib.contextmanager
def live_table(screen: Console, cells: list[Cell]) -> Iterator[Callable[[Cell], None]]:
    """Shows the cells: a live table on a terminal, otherwise a line for each change.

    Yields:
      A function to call whenever the state of a cell has changed.
    """
    begin = time.monotonic()

    def state(rows: int = MAX_ROWS) -> Table:
        return state_of(cells, rows, pace_of(cells, time.monotonic() - begin))

    if screen.is_terminal:
        rows, due = max(screen.height - 5, 6), 0.0
        with Live(state(rows), console=screen, auto_refresh=False) as live:

            def follow(cell: Cell) -> None:
                nonlocal due
                if time.monotonic() >= due:  # there may be thousands of finished cells
                    live.update(state(rows), refresh=True)
                    due = time.monotonic() + REFRESH_SECONDS

            yield follow
            live.update(state(), refresh=True)
        return
    numbers: dict[str, int] = {}
    printed: dict[str, tuple[str, str | None]] = {}

    def show(cell: Cell) -> None:
        if printed.get(cell.name) != (cell.status, cell.node):
            printed[cell.name] = cell.status, cell.node
            for one in cells[len(numbers) :]:  # a search adds some
                numbers[one.name] = len(numbers) + 1
            screen.print(
                f"{numbers[cell.name]} of {len(cells)}  {cell.line}{rest(cell)}"
            )

    def rest(cell: Cell) -> str:
        if not cell.is_over or not cell.seconds:  # another process trained it
            return ""
        return f" ({pace_of(cells, time.monotonic() - begin)})"

    yield show
    screen.print()
    screen.print(state())
