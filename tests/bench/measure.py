"""Runs commands and measures them: wall-clock seconds and peak memory, interleaved, medians."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field


@dataclass
class Contender:
    """A command that is measured beside others. `prepare` runs untimed before each run."""

    name: str
    argv: list
    cwd: str
    env: dict = field(default_factory=dict)
    prepare: object = None
    proof: object = None  # called after each run: raises if the work was not done
    rounds: int = 0  # 0: as many as the others
    scale: int = 1  # the time is multiplied by this: a smaller graph was run
    note: str = ""


@dataclass
class Result:
    """Medians of a contender's runs."""

    name: str
    seconds: float
    peak_mib: float
    runs: int
    note: str


def once(contender):
    """One run: seconds and peak MiB. A run that fails ends the benchmark with its output."""
    if contender.prepare:
        contender.prepare()
    with tempfile.NamedTemporaryFile("r") as rss, tempfile.TemporaryFile() as output:
        # GNU time is tiny: a child's peak never starts from this interpreter's own.
        argv = ["/usr/bin/time", "--quiet", "-f", "%M", "-o", rss.name, *contender.argv]
        start = time.perf_counter()
        code = subprocess.call(
            argv,
            cwd=contender.cwd,
            env={**os.environ, **contender.env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        seconds = time.perf_counter() - start
        if code != 0:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace")[-4000:])
            sys.exit(f"bench: {contender.name} ended with {code}: {' '.join(contender.argv)}")
        peak = int(rss.read().split()[-1]) / 1024
    if contender.proof:
        contender.proof()
    return seconds * contender.scale, peak


def interleaved(contenders, rounds):
    """Every contender once a round, in turn, so that a busy minute hurts all alike."""
    taken = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        for contender in contenders:
            if not contender.rounds or turn < contender.rounds:
                print(f"  {contender.name}, round {turn + 1}", file=sys.stderr)
                taken[contender.name].append(once(contender))
    return [
        Result(
            contender.name,
            statistics.median(seconds for seconds, _ in taken[contender.name]),
            statistics.median(peak for _, peak in taken[contender.name]),
            len(taken[contender.name]),
            contender.note,
        )
        for contender in contenders
    ]
