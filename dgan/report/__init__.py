"""One self-contained HTML page of a run, from what its directory tells."""

from pathlib import Path

from dgan.data.aside import written_aside
from dgan.report.page import page
from dgan.report.reading import read

__all__ = ["write_report"]


def write_report(directory: Path, out: Path) -> int:
    """Write the report of the run in `directory`, whether it has ended or not, to `out`.

    Returns:
        Its size in bytes.

    Raises:
        FileNotFoundError: there is no run.
    """
    html = page(read(directory)).encode()
    with written_aside(out) as file:
        file.write(html)
    return len(html)
