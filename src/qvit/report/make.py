"""make_report() and refresh(): from the paths that a user gives to the files on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..system.storage import write_atomic
from .chart_bits import bit_maps, mean_bits
from .chart_engine import engine_time
from .chart_grids import grids
from .chart_paths import looks, paths
from .chart_sensitivity import sensitivity
from .chart_slots import scale_banks, slots_in_use
from .chart_tradeoff import tradeoff
from .chart_training import training
from .find import find_runs
from .page import Block, Page, render
from .picture import Cast, Picture
from .png import write_pictures
from .read import read_run
from .run import Run


def make_report(given: Sequence[Path], out: Path, pictures: Path | None = None, *, live: bool = False) -> list[Path]:
    """Write the page, and with `pictures` the same charts as PNG files into that folder; returns what was written.

    given  run directories, folders of them, or result files
    live   the page reloads itself, since a run is still training

    Raises ReportError, CheckpointError or ArtifactError, each naming the file, for a run that is missing or damaged.
    """
    runs = [read_run(name, path) for name, path in find_runs(given).items()]
    write_atomic(out, render(collect(runs, legend=False), live=live).encode())
    if pictures is None:
        return [out]
    return [out, *write_pictures(collect(runs, legend=True).pictures(), pictures)]


def refresh(run_folder: Path, out: Path) -> None:
    """Write the page of one run directory while it trains; it reloads itself until the run has its result.json.

    Only the main process should call this. Costs about a second of one core.
    """
    make_report([run_folder], out, live=not (run_folder / "result.json").exists())


def collect(runs: Sequence[Run], legend: bool) -> Page:
    """All pictures of some runs; `legend` explains the runs inside each chart."""
    trained = [run for run in runs if run.is_trained]
    cast = Cast([run.name for run in trained], legend)
    times = looks(runs)
    return Page(
        runs=trained,
        tradeoff=list(tradeoff(trained, cast)),
        training=list(training(trained, cast)),
        bits=list(mean_bits(trained, cast)),
        blocks=[Block(run, list(_of_run(run, f"run{number}", times))) for number, run in enumerate(trained)],
        analyses=[
            Block(run, list(sensitivity(run, f"analysis{number}")))
            for number, run in enumerate(run for run in runs if run.analysis is not None)
        ],
    )


def _of_run(run: Run, key: str, times: int) -> Iterator[Picture]:
    yield from bit_maps(run, key)
    yield from slots_in_use(run, key)
    yield from paths(run, key, times)
    yield from scale_banks(run, key)
    yield from grids(run, key)
    yield from engine_time(run, key)
