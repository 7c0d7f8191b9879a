"""`database-corruption` by a warm copy, beside its restore, on sandboxes of several sizes.

Wants Docker's engine, as the tests do: `just bench-warm` starts one."""

import json
import os
import shutil
import socket
import subprocess

from measure import Result

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))


def recover(lifeboat, folder, users):
    """Two results: by the warm copy, and by a restore of the same backup."""
    place = f"{folder}/warm"
    shutil.rmtree(place, ignore_errors=True)
    os.makedirs(f"{place}/plans/environments")
    for name in os.listdir(f"{ROOT}/plans"):
        if name.endswith(".yaml"):
            shutil.copy(f"{ROOT}/plans/{name}", f"{place}/plans/{name}")
    auth, sink = free_port(), free_port()
    container = f"lifeboat-bench-{os.getpid()}"
    docker = os.environ.get("LIFEBOAT_TEST_DOCKER", "unix:///var/run/docker.sock")
    environment = {
        "lifeboat": 1,
        "environment": "bench",
        "vars": {"service": container, "wal_archive": "archive", "min_free": "1MiB"},
        "targets": {
            "db": {"postgres": {"sandbox": {}, "clients": [f"docker/{container}"]}},
            "backups": {"storage": {"scheme": "fs", "root": f"{place}/backups"}},
            "docker": {"docker": {"host": docker}},
            "auth": {"http": {
                "base_url": f"http://127.0.0.1:{auth}",
                "sandbox": {
                    "database": "db/manacore_auth", "container": f"docker/{container}", "users": users,
                    "secret": "for-the-bench",
                },
            }},
            "oncall": {"webhook": {"url": f"http://127.0.0.1:{sink}/", "sandbox": True}},
        },
    }
    with open(f"{place}/plans/environments/bench.yaml", "w", encoding="utf-8") as file:
        json.dump(environment, file)  # JSON is YAML

    def run(*arguments):
        done = subprocess.run(
            [lifeboat, *arguments], cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False,
        )
        if done.returncode:
            raise SystemExit(f"bench: lifeboat {' '.join(arguments)}\n{done.stdout[-4000:]}")
        return done.stdout

    def plan(name, *arguments):
        run("run", f"plans/{name}.yaml", "--env", "bench", "--yes", *arguments)
        report = json.loads(run("report", "--format", "json"))
        states = {step["id"]: step["state"] for step in report["steps"]}
        return report["recovery"]["time"], states

    try:
        run("sandbox", "up", "--env", "bench")
        plan("daily-backup")
        plan("warm-standby")
        warm, states = plan("database-corruption")
        assert states["restore"] == "skipped", states
        restored, states = plan("database-corruption", "-i", "warm=false")
        assert states["restore"] == "succeeded", states
    finally:
        subprocess.run([lifeboat, "sandbox", "down", "--env", "bench"], cwd=place, check=False,
                       stdout=subprocess.DEVNULL)
    note = "recovery time of the plan's report"
    return [Result("by the warm copy", warm, 0, 1, note), Result("by a restore", restored, 0, 1, note)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
