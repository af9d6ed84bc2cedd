"""The one type of table that the terminal, the report and the model cards print, with a printer for each.

A cell's key is the path of its figure in the sources ("evaluation/models/ppo/reward"). The page carries it, and
report.json has the figure under it, so that each number on the page can be traced, and a test can compare all of them.
An estimate stands with its interval, and its n is in its row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.config.printable import printable

Sources = Mapping[str, Any]  # what a summary holds of a run's results, and each stage's manifest below "manifests"

WIDTH = 100  # columns of a terminal


@dataclass(frozen=True)
class Cell:
    """A figure as text, with its path in the sources and its value; a text that is no figure has no key."""

    text: str
    key: str = ""
    value: Any = None


@dataclass(frozen=True)
class Row:
    """A label and its cells, one a column. better: the direction of better figures, None where there is none."""

    label: str
    cells: Sequence[Cell]
    better: str | None = None

    @property
    def n(self) -> str:
        """How many values the estimates are over: one number where they agree, "-" where there are none."""
        counts = [str(cell.value["n"]) if isinstance(cell.value, Mapping) else "-" for cell in self.cells]
        known = set(counts) - {"-"}
        return ", ".join(counts) if len(known) > 1 else next(iter(known), "-")

    @property
    def is_known(self) -> bool:
        """Whether any cell has a value."""
        return any(cell.text != "-" for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """Rows of figures under columns, which are headers by key. n_of: what n counts, None without estimates."""

    name: str
    title: str
    columns: Mapping[str, str]
    rows: Sequence[Row]
    n_of: str | None = None

    def only(self, *keys: str) -> "Table":
        """Return the table with these of its columns alone, and without the rows of which they know nothing."""
        places = [place for place, key in enumerate(self.columns) if key in keys]
        columns = {key: header for key, header in self.columns.items() if key in keys}
        rows = [replace(row, cells=[row.cells[place] for place in places]) for row in self.rows]
        return replace(self, columns=columns, rows=[row for row in rows if row.is_known])


def text_row(label: str, *texts: str) -> Row:
    """Return a row of texts that are no figures."""
    return Row(label, [Cell(one) for one in texts])


def look_up(sources: Sources, key: str) -> Any:
    """Return what stands at a path; None where the path ends early in a null or has no such entry."""
    found: Any = sources
    for part in key.split("/"):
        if found is None:
            return None
        found = found[int(part)] if isinstance(found, list) else found.get(part)
    return found


def text(value: Any, unit: str = "points") -> str:
    """Write a figure as it is printed everywhere; an estimate is `mean [low, high]`, what is unknown is "-".

    What rounds to zero has no minus sign ("z" in the formats).
    """
    if value is None:
        return "-"
    scale, decimals, suffix = metrics.FORMATS.get(unit, metrics.OTHER_FORMAT)
    if isinstance(value, Mapping):
        mean, low, high = (scale * value[name] for name in ("mean", "low", "high"))
        if unit != "share":  # three columns of larger figures with as many decimals would not fit a terminal
            largest = max(abs(low), abs(high))
            decimals = max(0, decimals - (largest >= 100) - (largest >= 1000))
        return f"{mean:z.{decimals}f}{suffix} [{low:z.{decimals}f}, {high:z.{decimals}f}]"
    return f"{scale * value:z.{decimals}f}{suffix}" if isinstance(value, float) else str(value)


def cell(sources: Sources, key: str, unit: str = "points", default: Any = None) -> Cell:
    """Return the cell of the figure at a path. default: the value where there is none."""
    value = look_up(sources, key)
    value = default if value is None else value
    return Cell(text(value, unit), key, value)


def by_metric(
    sources: Sources, name: str, title: str, shown: Sequence[Metric], places: Mapping[str, str], n_of: str | None = None
) -> Table:
    """Return a table with a row for each metric that is known of any place, and a column for each place.

    places: headers by path; the last part of the path is the key of the column.
    """
    rows = [
        Row(one.title, [cell(sources, f"{place}/{one.key}", one.unit) for place in places], one.better) for one in shown
    ]
    columns = {place.rpartition("/")[2]: header for place, header in places.items()}
    return Table(name, title, columns, [row for row in rows if row.is_known], n_of)


def by_place(
    sources: Sources, name: str, title: str, shown: Sequence[Metric], places: Mapping[str, str], n_of: str | None = None
) -> Table:
    """Return a table with a row for each place (label by path), and a column for each metric."""
    rows = [
        Row(label, [cell(sources, f"{place}/{one.key}", one.unit) for one in shown]) for place, label in places.items()
    ]
    return Table(name, title, {one.key: one.title for one in shown}, rows, n_of)


def markdown(table: Table) -> str:
    """Print a table for a model card, without columns of which nothing is known.

    Names out of the data may hold what would break its rows.
    """
    known = [key for place, key in enumerate(table.columns) if any(row.cells[place].text != "-" for row in table.rows)]
    header, rows = _grid(table.only(*known), with_n=True)
    lines = [header, ["---"] * len(header), *rows]
    cells = ([text.replace("|", "\\|").replace("<", "&lt;") for text in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plain(table: Table, with_n: bool = True) -> str:
    """Print a table in ASCII for a terminal or a log, no wider than 100 columns; its rows are Markdown too."""
    header, rows = _grid(table, with_n)
    grid = RichTable(box=box.MARKDOWN)
    for place, title in enumerate(header):
        # only labels are broken, since figures broken over two lines are hard to read
        grid.add_column(title, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        grid.add_row(*row)
    console = Console(width=WIDTH, force_terminal=False, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        console.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines() if line.strip())


def _grid(table: Table, with_n: bool) -> tuple[list[str], list[list[str]]]:
    """The texts of the header and of the rows, as they can be printed; the title heads the labels."""
    with_n = with_n and table.n_of is not None
    header = [table.title, *table.columns.values(), *(["n"] if with_n else [])]
    rows = [[row.label, *(one.text for one in row.cells), *([row.n] if with_n else [])] for row in table.rows]
    return [printable(one) for one in header], [[printable(one) for one in row] for row in rows]
