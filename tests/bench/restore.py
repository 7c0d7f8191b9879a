"""`postgres.restore` beside `gunzip -c | psql`, `psql -1` and `pg_restore -j`, on the same data and server."""

import itertools
import os
import shutil
import subprocess
import sys

import limit
from measure import Contender, interleaved
from graphs import write
from server import Server

# An auth service's database. Where what a row holds decides how much of the time goes into rows and how much into
# indexes, it is as long as it is in life: a browser's whole name, a token of 32 characters, settings of some depth.
SEED = """
create schema auth; create schema credits;
create type auth.role as enum ('user', 'admin', 'service');
create table auth.users (id uuid primary key, email text not null unique, name text,
    role auth.role not null, verified boolean not null, created_at timestamptz not null,
    settings jsonb not null);
create table auth.sessions (id bigint generated always as identity primary key,
    user_id uuid not null references auth.users, token text not null unique,
    ip inet, agent text, created_at timestamp not null, expires_at timestamp not null);
create table credits.balances (user_id uuid primary key references auth.users,
    amount numeric(12, 2) not null check (amount >= 0), updated_at timestamptz not null);
create table credits.ledger (id bigint primary key, user_id uuid not null references auth.users,
    amount numeric(12, 2) not null, reason text not null, at timestamptz not null);
insert into auth.users select md5(n::text)::uuid, 'user' || n || '@yourcompany.com', 'User ' || n,
    (array['user', 'admin', 'service'])[1 + n % 3]::auth.role, n % 7 <> 0,
    timestamptz '2024-01-01' + n * interval '1 minute',
    jsonb_build_object(
        'theme', (array['light', 'dark', 'system'])[1 + n % 3],
        'locale', (array['en', 'de', 'fr', 'ja'])[1 + n % 4],
        'timezone', (array['Europe/Berlin', 'America/New_York', 'Asia/Tokyo'])[1 + n % 3],
        'notifications', jsonb_build_object('email', n % 2 = 0, 'push', n % 5 = 0, 'digest', 'weekly'),
        'organizations', jsonb_build_array(n % 200, n % 177),
        'onboarding', jsonb_build_object('done', n % 11 <> 0, 'step', n % 6))
    from generate_series(1, :users) n;
insert into auth.sessions (user_id, token, ip, agent, created_at, expires_at)
    select md5((1 + n % :users)::text)::uuid, md5(n::text),
    ('10.' || n % 250 || '.' || n / 250 % 250 || '.1')::inet,
    'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/' || 100 + n % 40
        || '.0.0.0 Safari/537.36',
    timestamp '2024-01-01' + n * interval '1 second',
    timestamp '2024-02-01' + n * interval '1 second'
    from generate_series(1, :users * 4) n;
insert into credits.balances select id, (n % 10000) / 100.0, created_at
    from (select *, row_number() over () n from auth.users) u;
insert into credits.ledger select n, md5((1 + n % :users)::text)::uuid, (n % 977) / 10.0,
    'purchase ' || md5(n::text), timestamptz '2024-01-01' + n * interval '3 seconds'
    from generate_series(1, :users * 3) n;
create index on auth.sessions (user_id, expires_at);
create index on credits.ledger (user_id, at);
create index on auth.users using gin (settings);
"""

SMALL = """
create schema many;
select format('create table many.t%s (id int primary key, parent int, name text not null, at timestamptz not null)', n)
    from generate_series(1, :tables) n \\gexec
select format('insert into many.t%s select g, g / 2 + 1, md5(g::text), timestamptz ''2024-01-01'' + g * interval ''1 hour'' '
    'from generate_series(1, %s) g', n, 20 + n % 200) from generate_series(1, :tables) n \\gexec
select format('create index on many.t%s (name)', n) from generate_series(1, :tables) n \\gexec
select format('alter table many.t%s add foreign key (parent) references many.t%s', n, n)
    from generate_series(1, :tables, 4) n \\gexec
"""

# From so many MiB on, rows rather than files are what a restore takes its time for.
LARGE = 512

def compare(lifeboat, folder, rounds, jobs, seed, settings=None, alone=False, **sizes):
    """Contenders' results and the database's size in MiB; refuses to compare unequal restores.

    `alone`: beside `gunzip | psql` only."""
    with Server(settings) as server:
        server.psql("postgres", "-c", "create database source")
        variables = [argument for name, size in sizes.items() for argument in ("-v", f"{name}={size}")]
        server.psql("source", *variables, text=seed)
        # Or autovacuum does it while somebody is measured.
        server.psql("source", "-c", "vacuum analyze")
        dumps = f"{folder}/dumps"
        shutil.rmtree(dumps, ignore_errors=True)
        os.makedirs(dumps)
        dump = f"{dumps}/bench.sql.gz"
        subprocess.run(
            ["bash", "-c", 'set -o pipefail; pg_dump "$1" | gzip > "$2"', "bash", server.url("source"), dump],
            check=True,
        )
        for kind in ("custom", "directory"):
            subprocess.run(
                ["pg_dump", f"--format={kind}", f"--file={dumps}/{kind}", server.url("source")], check=True
            )
        megabytes = int(server.psql("source", "-c", "select pg_database_size('source') >> 20"))
        wanted = server.fingerprint("source")
        number = itertools.count()
        for name, connections in (("by_lifeboat", []), ("by_lifeboat_1", ["      jobs: 1"])):
            write(f"{folder}/bench-{name}.yaml", [
                "lifeboat: 1",
                f"plan: bench-{name.replace('_', '-')}",
                "title: A benchmark",
                "targets: { db: postgres, dumps: storage }",
                "steps:",
                "  restore:",
                "    postgres.restore:",
                "      target: db",
                f"      database: {name}",
                "      create: true",
                *connections,
                "      from: { storage: dumps, path: bench.sql.gz }",
            ])
        server.environment(folder, dumps)

        def contender(who, name, argv, create=True, note=""):
            def prepare():
                server.psql("postgres", "-c", f"drop database if exists {name}")
                if create:
                    server.psql("postgres", "-c", f"create database {name} template template0")
                server.psql("postgres", "-c", "checkpoint")

            def proof():
                if server.fingerprint(name) != wanted:
                    raise SystemExit(f"bench: {name} is not equal to the source; no ratio is given")
                # What autovacuum does with it is nobody's time.
                if megabytes < LARGE:
                    # So many files stay, as the server's own do (`Server.__exit__`).
                    server.psql(name, "-c", "vacuum")
                    server.psql("postgres", "-c", f"alter database {name} rename to kept_{next(number)}")
                else:
                    server.psql("postgres", "-c", f"drop database {name}")

            return Contender(who, argv, folder, prepare=prepare, proof=proof, note=note)

        def by_lifeboat(who, name, note):
            argv = [lifeboat, "run", f"bench-{name}.yaml", "--env", "bench-environment.yaml", "--yes",
                    "--state", "state"]
            return contender(who, name, argv, create=False, note=note)

        def by_script(who, name, script, *arguments):
            url = server.url(name)
            script = f'set -o pipefail; {script} && psql -Xqc analyze "$1"'
            return contender(who, name, ["bash", "-c", script, "bash", url, *arguments], note="then ANALYZE")

        psql = "psql -Xq -v ON_ERROR_STOP=1"
        contenders = [
            by_script("gunzip | psql", "by_psql", f'gunzip -c "$2" | {psql} "$1" > /dev/null', dump),
            by_script("gunzip | psql -1", "by_psql_1", f'gunzip -c "$2" | {psql} -1 "$1" > /dev/null', dump),
        ] + [
            by_script(
                f"pg_restore -j{count}, {kind}", f"by_{kind}_{count}", f'pg_restore -e -j{count} -d "$1" "$2"',
                f"{dumps}/{kind}",
            )
            # Small tables wait for the disk: more of them at once may help.
            for count, kind in [(jobs, "custom"), (jobs, "directory")] + [(2 * jobs, "directory")] * (megabytes < LARGE)
        ]
        if megabytes >= LARGE and not alone:
            limit.ready(server, "source", f"{server.base}/rows")
            argv = [sys.executable, limit.__file__, server.url("by_limit"), f"{server.base}/rows", str(jobs)]
            note = "binary rows in its own files; nothing is proven, turned or sent"
            contenders.append(contender(f"the server alone, {jobs} connections", "by_limit", argv, note=note))
        if lifeboat:
            whole = "the whole run: preflight, proof that the dump is complete, restore, rows counted, ANALYZE"
            contenders = [
                by_lifeboat("lifeboat", "by_lifeboat", f"as many connections as it takes by itself; {whole}"),
                by_lifeboat("lifeboat, one connection", "by_lifeboat_1", f"through psql; {whole}"),
                *contenders,
            ]
        if alone:
            contenders = [it for it in contenders if it.name in ("lifeboat", "gunzip | psql")]
        # Over several connections pg_restore empties each table before it fills it: the files that this deletes by the
        # thousand would be paid for by whoever comes next (`Server.__exit__`).
        deletes = [it for it in contenders if megabytes < LARGE and it.name.startswith("pg_restore")]
        others = [it for it in contenders if it not in deletes]
        return interleaved(others, rounds) + interleaved(deletes, rounds), megabytes
