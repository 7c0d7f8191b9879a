"""`postgres.backup` beside `pg_dump | gzip` and `pg_dump -Fc`, on the same database."""

import os
import shutil
import subprocess

from graphs import write
from measure import Contender, interleaved
from server import Server


def compare(lifeboat, folder, rounds, seed, settings=None, **sizes):
    """Contenders' results, each with the size of its file, and the database's size in MiB."""
    with Server(settings) as server:
        server.psql("postgres", "-c", "create database source")
        variables = [argument for name, size in sizes.items() for argument in ("-v", f"{name}={size}")]
        server.psql("source", *variables, text=seed)
        server.psql("source", "-c", "vacuum analyze")
        megabytes = int(server.psql("source", "-c", "select pg_database_size('source') >> 20"))
        dumps = f"{folder}/backups"
        shutil.rmtree(dumps, ignore_errors=True)
        os.makedirs(dumps)
        write(f"{folder}/bench-backup.yaml", [
            "lifeboat: 1",
            "plan: bench-backup",
            "title: A benchmark",
            "targets: { db: postgres, dumps: storage }",
            "steps:",
            "  backup:",
            "    postgres.backup:",
            "      target: db",
            "      database: source",
            "      to: { storage: dumps, path: by_lifeboat.sql.zst }",
        ])
        server.environment(folder, dumps)
        sizes_of = {}

        def contender(who, name, argv, text, note=""):
            path = f"{dumps}/{name}"

            def prepare():
                for old in os.listdir(dumps):
                    if old.startswith(name):
                        os.remove(f"{dumps}/{old}")

            def proof():
                sizes_of[who] = os.path.getsize(path)
                if text and digest(text, path) != wanted:
                    raise SystemExit(f"bench: {path} is not what pg_dump writes; no ratio is given")

            return Contender(who, argv, folder, prepare=prepare, proof=proof, note=note)

        def by_script(who, name, script, text):
            argv = ["bash", "-c", f"set -o pipefail; {script}", "bash", server.url("source"), f"{dumps}/{name}"]
            return contender(who, name, argv, text)

        wanted = digest('pg_dump "$1"', server.url("source"))
        contenders = [
            by_script("pg_dump | gzip", "by_gzip.sql.gz", 'pg_dump "$1" | gzip > "$2"', 'gunzip -c "$1"'),
            by_script("pg_dump -Fc", "by_custom.dump", 'pg_dump -Fc -f "$2" "$1"', None),
        ]
        if lifeboat:
            argv = [lifeboat, "run", "bench-backup.yaml", "--env", "bench-environment.yaml", "--yes", "--state", "state"]
            note = "rows counted and hashed, read back from the storage"
            contenders.insert(0, contender("lifeboat", "by_lifeboat.sql.zst", argv, 'zstd -dc "$1"', note))
        results = interleaved(contenders, rounds)
        for result in results:
            size = f"{sizes_of[result.name] / 2**20:.1f} MiB"
            result.note = f"{size}; {result.note}" if result.note else size
        return results, megabytes


def digest(script, argument):
    """What a dump's text comes to, without the key that newer ones are fenced with."""
    script = f"set -o pipefail; {script} | grep -av '^.\\(un\\)\\?restrict ' | sha256sum"
    done = subprocess.run(["bash", "-c", script, "bash", argument], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout
