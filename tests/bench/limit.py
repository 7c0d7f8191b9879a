"""What a server needs for a restore by itself: its rows ready in files of its own in COPY's binary form, read and built
over several connections. Nothing is read, proven, turned or sent: an estimate of what no restore gets below.

As a program: `limit.py URL FOLDER JOBS` fills the database at URL from what `ready` wrote."""

import os
import queue
import subprocess
import sys
import threading

# How many of a table's blocks are one chunk: some 9 MiB.
CHUNK = 1100
PSQL = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1"]
TABLES = "select attrelid::regclass, pg_relation_size(attrelid) / 8192, string_agg(quote_ident(attname), ',' order by attnum) " \
    "from pg_attribute join pg_class c on c.oid = attrelid where relkind = 'r' and attnum > 0 and not attisdropped " \
    "and relnamespace::regnamespace::text not in ('pg_catalog', 'information_schema') group by 1, 2 order by 2 desc"

SEQUENCES = "select format('select setval(%L, %s);', format('%I.%I', schemaname, sequencename), last_value) " \
    "from pg_sequences where last_value is not null"


def ready(server, source, folder):
    """Writes the rows of `source` to `folder`, which the server may write to, and beside them what makes its tables,
    indexes and keys."""
    os.makedirs(folder)
    if server.user:
        subprocess.run(["chown", server.user, folder], check=True)
    chunks = []
    for line in server.psql(source, "-c", TABLES).splitlines():
        table, blocks, columns = line.split("|")
        for at in range(0, int(blocks), CHUNK):
            file = f"{folder}/{len(chunks)}"
            rows = f"select {columns} from {table} where ctid >= '({at},0)' and ctid < '({at + CHUNK},0)'"
            server.psql(source, "-c", f"copy ({rows}) to '{file}' (format binary)")
            chunks.append(f"copy {table} ({columns}) from '{file}' (format binary);")
    dump = ["pg_dump", "--schema-only", server.url(source)]
    parts = {
        name: subprocess.run([*dump, f"--section={name}"], check=True, stdout=subprocess.PIPE, text=True).stdout
        for name in ("pre-data", "post-data")
    }
    with open(f"{folder}.sql", "w") as file:
        # What `psql` takes for commands isn't sent from here.
        plain = (line for line in parts["pre-data"].splitlines() if not line.startswith("\\"))
        file.write("\n".join(plain) + "\n")
        file.write(server.psql(source, "-c", SEQUENCES) + "\n")
    built = [" ".join(text.split()) for text in "".join(
        line for line in parts["post-data"].splitlines(True) if not line.startswith(("--", "\\", "SET ", "SELECT "))
    ).split(";")]
    with open(f"{folder}.rows", "w") as rows, open(f"{folder}.built", "w") as others:
        rows.write("\n".join(chunks))
        others.write("\n".join(text for text in built if text))


def side_by_side(url, jobs, statements):
    """Runs statements over several connections, each the next one that nobody has."""
    waiting, failed = queue.SimpleQueue(), []
    for statement in statements:
        waiting.put(statement)

    def work():
        with subprocess.Popen([*PSQL, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as psql:
            psql.stdin.write("set synchronous_commit = off; set search_path = public;"
                             "set max_parallel_maintenance_workers = 0;\n")
            while True:
                try:
                    statement = waiting.get_nowait()
                except queue.Empty:
                    break
                psql.stdin.write(f"{statement}\n\\echo done\n")
                # What it answers comes before.
                while (line := psql.stdout.readline().strip()) != "done":
                    if psql.poll() is not None and not line:
                        failed.append(psql.returncode)
                        return
            psql.stdin.close()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"limit: psql ended with {failed}")


def fill(url, folder, jobs):
    """Restores what `ready` wrote."""
    subprocess.run([*PSQL, url, "-f", f"{folder}.sql"], check=True, stdout=subprocess.DEVNULL)
    rows, built = ([line.strip() for line in open(f"{folder}.{name}")] for name in ("rows", "built"))
    tables = list(dict.fromkeys(row.split()[1] for row in rows))
    side_by_side(url, jobs, rows)
    foreign = [text for text in built if " FOREIGN KEY " in text]
    # As a B-tree is sorted fastest, and the longest first.
    sorted_in = "set maintenance_work_mem = '{}'; {};"
    longest = sorted(
        (text for text in built if text not in foreign),
        key=lambda text: (" USING gin " not in text, next(at for at, table in enumerate(tables) if f" {table} " in text)),
    )
    side_by_side(url, jobs, (sorted_in.format("64MB" if " gin " in text else "4MB", text) for text in longest))
    side_by_side(url, 1, (f"{text} NOT VALID;" for text in foreign))
    checks = (text.split(" ADD CONSTRAINT ") for text in foreign)
    side_by_side(url, jobs, [
        f"set maintenance_work_mem = '256MB'; {table} VALIDATE CONSTRAINT {rest.split()[0]};" for table, rest in checks
    ])
    side_by_side(url, jobs, [f"select count(*) from {table};" for table in tables])
    side_by_side(url, jobs, [f"analyze {table};" for table in tables])


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2], int(sys.argv[3]))
