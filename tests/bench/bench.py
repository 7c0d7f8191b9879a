"""Prints one table of figures, from one run on one machine (`just bench`).

What it measures: `check` of generated plans, start-up and size, runs of many small steps beside
other tools, restores beside psql and pg_restore, backups beside pg_dump, recovery by a warm copy.
Runs are interleaved; times are medians of wall-clock seconds; memory is the peak of the largest process.
"""

import argparse
import os
import platform
import shutil
import signal
import sys

import backup
import graphs
import restore
import server
import warm
from measure import Contender, interleaved

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="check,start,runs,restore", help="some of: %(default)s, backup, growth, warm")
    parser.add_argument("--steps", type=int, default=1000, help="steps of the runs (%(default)s)")
    parser.add_argument("--users", type=int, default=200_000, help="size of the dump, 0: none (%(default)s)")
    parser.add_argument("--tables", type=int, default=2000, help="small tables of another dump, 0: none (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="connections of the other restores (%(default)s)")
    parser.add_argument("--tuned", action="store_true", help="restore into a tuned server, too")
    parser.add_argument("--growth", default="0.25,1,4", help="sizes as parts of --users (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of runs and restores (%(default)s)")
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "release", "lifeboat"))
    parser.add_argument("--others", action="store_true", help="measure only the other tools")
    options = parser.parse_args()
    wanted = options.only.split(",")
    for ended in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ended, lambda *_: sys.exit("bench: ended"))  # the server is stopped on the way out

    lifeboat = None if options.others else os.path.abspath(options.binary)
    folder = os.path.join(ROOT, "target", "bench")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)

    table = Table()
    if lifeboat and "check" in wanted:
        check(table, lifeboat, folder)
    if lifeboat and "start" in wanted:
        start(table, lifeboat, folder)
    if "runs" in wanted:
        for chain in (True, False):
            shape = "a chain" if chain else "side by side"
            table.add(
                f"run {options.steps} `true` steps, {shape}",
                interleaved(
                    graphs.contenders(
                        lifeboat, os.path.join(ROOT, "target", "venv"), folder, options.steps, chain,
                        ansible_count=max(1, options.steps // 5),
                    ),
                    options.rounds,
                ),
            )
    if "restore" in wanted:
        for settings, which in [(None, ""), (server.TUNED, ", tuned server")][: 2 if options.tuned else 1]:
            if options.users:
                results, megabytes = restore.compare(
                    lifeboat, folder, options.rounds, options.jobs, restore.SEED, settings, users=options.users
                )
                table.add(f"restore a database of {megabytes} MiB, over half of it one table{which}", results)
            if options.tables:
                results, megabytes = restore.compare(
                    lifeboat, folder, options.rounds, options.jobs, restore.SMALL, settings, tables=options.tables
                )
                table.add(f"restore {options.tables} small tables, {megabytes} MiB{which}", results)
    if "backup" in wanted:
        results, megabytes = backup.compare(lifeboat, folder, options.rounds, restore.SEED, users=options.users)
        table.add(f"back up a database of {megabytes} MiB", results)
    growth = [int(float(part) * options.users) for part in options.growth.split(",")]
    if "growth" in wanted:
        for users in growth:
            results, megabytes = restore.compare(
                lifeboat, folder, 1, options.jobs, restore.SEED, alone=True, users=users
            )
            table.add(f"restore a database of {megabytes} MiB", results)
    if "warm" in wanted and lifeboat:
        for users in growth:
            table.add(f"recover {users} users", warm.recover(lifeboat, folder, users), compared=False)
    print(machine())
    print()
    table.print()
    shutil.rmtree(folder)


def check(table, lifeboat, folder):
    for chain in (True, False):
        contenders = []
        for count in (100, 1000, 10_000):
            shape = "chain" if chain else "wide"
            plan = f"{folder}/check/{shape}-{count}.yaml"
            graphs.lifeboat_plan(plan, count, chain)
            contenders.append(Contender(
                f"{count} steps", [lifeboat, "check", plan], folder,
                note=f"{os.path.getsize(plan) / 1024:.0f} KiB of YAML",
            ))
        table.add(f"check, {'a chain' if chain else 'side by side'}", interleaved(contenders, 7), compared=False)


def start(table, lifeboat, folder):
    plan = f"{folder}/start/plan.yaml"
    graphs.lifeboat_plan(plan, 1, True)
    contenders = [
        Contender("--version", [lifeboat, "--version"], folder),
        Contender("check of one step", [lifeboat, "check", plan], folder),
    ]
    results = interleaved(contenders, 21)
    results[0].note = f"binary: {os.path.getsize(lifeboat) / 2**20:.1f} MiB"
    table.add("start-up", results, compared=False)


class Table:
    """Rows gathered while measuring, printed at the end as one Markdown table."""

    def __init__(self):
        self.rows = [("what", "who", "seconds", "÷ lifeboat", "peak MiB", "runs", "note")]

    def add(self, what, results, compared=True):
        ours = next((result.seconds for result in results if result.name == "lifeboat"), None)
        for result in results:
            ratio = f"{result.seconds / ours:.2f}" if compared and ours else ""
            self.rows.append((
                what, result.name, f"{result.seconds:.3f}", ratio, f"{result.peak_mib:.1f}",
                str(result.runs), result.note,
            ))
            # Of a bench that is ended early stays what was measured.
            print("bench:", " ".join(cell for cell in self.rows[-1] if cell), file=sys.stderr, flush=True)
            what = ""

    def print(self):
        widths = [max(len(row[column]) for row in self.rows) for column in range(len(self.rows[0]))]
        for number, row in enumerate(self.rows):
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
            if number == 0:
                print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def machine():
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) / 2**20
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


if __name__ == "__main__":
    main()
