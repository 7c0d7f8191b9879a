"""A throwaway PostgreSQL to measure on, and what a database on it comes to."""

import atexit
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile

from graphs import write

# What its operator might have set for a restore on 2 cores and 8 GiB.
TUNED = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "30min",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}

CONTENT = """
select string_agg(line, E'\\n' order by line) from (
    select format('%s.%s', schemaname, tablename) || ' ' || (xpath('/row/c/text()', query_to_xml(
        format('select count(*) || '' '' || coalesce(sum(hashtextextended(t::text, 0)), 0) as c '
               'from %I.%I t', schemaname, tablename), false, true, '')))[1]::text as line
    from pg_tables where schemaname not in ('pg_catalog', 'information_schema')) lines
"""


STATES = """
select string_agg(line, E'\\n' order by line) from (
    select format('%s %s %s', conrelid::regclass, conname, convalidated) as line from pg_constraint
    union all select format('%s %s %s', indexrelid::regclass, indisvalid, indisready) from pg_index
    where indexrelid >= 16384 and indexrelid::regclass::text not like 'pg\\_toast%') lines
"""


class Server:
    """A throwaway PostgreSQL; without settings as its distribution makes it, and an operator finds it."""

    def __init__(self, settings=None):
        self.settings = settings or {}

    def __enter__(self):
        self.bin = max(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
        self.base = tempfile.mkdtemp(prefix="lifeboat-bench.", dir="/var/tmp")
        os.chmod(self.base, 0o755)
        self.data = os.path.join(self.base, "data")
        os.mkdir(self.data, 0o700)
        self.user = None
        if os.geteuid() == 0:  # PostgreSQL refuses root
            names = [entry.pw_name for entry in pwd.getpwall()]
            self.user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.data, self.user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        try:
            self.server("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--encoding=UTF8")
            options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
            options += "".join(f" -c {name}={value}" for name, value in self.settings.items())
            self.server("pg_ctl", "-D", self.data, "-l", f"{self.data}/log", "-o", options, "-w", "start")
        except BaseException:
            shutil.rmtree(self.base)
            raise
        return self

    def __exit__(self, *_):
        self.server("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")
        # ext4 looks at each inode that was freed within the last minutes before it gives one: files deleted by the ten
        # thousand would be paid for by whoever is measured next.
        atexit.register(shutil.rmtree, self.base)

    def server(self, program, *arguments):
        drop = ["runuser", "-u", self.user, "--"] if self.user else []
        subprocess.run(
            [*drop, f"{self.bin}/{program}", *arguments],
            check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )

    def url(self, database="postgres"):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}"

    def environment(self, folder, dumps):
        """Writes `bench-environment.yaml`: this server as `db`, a folder of dumps as `dumps`."""
        write(f"{folder}/bench-environment.yaml", [
            "lifeboat: 1",
            "environment: bench",
            "targets:",
            f"  db: {{ postgres: {{ url: '{self.url()}' }} }}",
            f"  dumps: {{ storage: {{ scheme: fs, root: '{dumps}' }} }}",
        ])

    def psql(self, database, *arguments, text=None):
        done = subprocess.run(
            ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.url(database), *arguments],
            check=True, input=text, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PGOPTIONS": "-c client_min_messages=warning"},
        )
        return done.stdout.strip()

    def fingerprint(self, database):
        """Schema, rows with their hashes, sequences, constraints and indexes."""
        schema = subprocess.run(
            ["pg_dump", "-s", self.url(database)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        # The key that newer dumps are fenced with differs by design.
        schema = [line for line in schema.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
        sequences = self.psql(
            database, "-c", "select schemaname, sequencename, last_value from pg_sequences order by 1, 2"
        )
        return schema, self.psql(database, "-c", CONTENT), sequences, self.psql(database, "-c", STATES)
