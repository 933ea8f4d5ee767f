"""`foreact eval ncap`: the NeuroNCAP table of a tree of simulated runs."""

from __future__ import annotations

from pathlib import Path

from foreact.checkpoints.configs import read_json
from foreact.errors import UserError
from foreact.families.driving.evals.ncap import aggregate, read_runs
from foreact.files import write_json
from foreact.runs.command_line import arguments_of, command_line
from foreact.runs.run import say

REFERENCE_DECIMALS = 3


def ncap(
    rootdir: Path, check: bool = True, reference_rounding: bool = False, out: Path | None = None
) -> None:
    """Average the metrics of a NeuroNCAP evaluation over runs, sequences and scenarios.

    Args:
        rootdir: folder with <scenario>-<sequence>/run_*/metrics.json.
        check: require every sequence of the benchmark, all with equally many runs.
        reference_rounding: round to 3 decimals at every level before averaging the next, as the
            reference does.
        out: file of the summary; default: ncap.json in `rootdir`.
    """
    options = arguments_of(ncap, locals())
    command = command_line("eval ncap", options)
    out = rootdir / "ncap.json" if out is None else out
    _require_free(out, command)
    say(
        "NeuroNCAP",
        rootdir=rootdir,
        check=check,
        rounding="at every level" if reference_rounding else "none",
    )
    runs = read_runs(rootdir, check=check)
    summary = aggregate(runs, decimals=REFERENCE_DECIMALS if reference_rounding else None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, {"command": command, **summary.to_json()})
    except OSError as error:
        raise UserError(
            f"The summary {out} cannot be written ({error.strerror}); choose another --out."
        ) from None
    print(summary.table())
    print(
        "Mean (standard deviation over what one line averages). All metrics per sequence: "
        + str(out)
    )


def _require_free(out: Path, command: str) -> None:
    """See that no other summary lies there; that of the same command may be brought up to date."""
    if not out.is_file():
        return
    before = read_json(out)
    measured = before.get("command") if isinstance(before, dict) else None
    if measured != command:
        raise UserError(
            f"{out} holds the results of {f'`{measured}`' if measured else 'something else'}; name "
            "another --out."
        )
