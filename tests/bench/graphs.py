"""The same graph of `true` steps for Lifeboat and for other tools: a chain, or all side by side."""

import os
import shutil

from measure import Contender

JOBS = 8  # Lifeboat's own default


def write(path, lines):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def lifeboat_plan(path, count, chain):
    """Writes a plan of `count` steps."""
    lines = ["lifeboat: 1", "plan: bench", "title: A benchmark", "steps:"]
    for number in range(count):
        lines.append(f"  s{number}:")
        if not chain:
            lines.append("    needs: []")
        lines.append('    exec: { argv: ["true"] }')
    write(path, lines)


def makefile(path, count, chain):
    lines = [".PHONY: all " + " ".join(f"s{n}" for n in range(count))]
    lines.append("all: " + " ".join(f"s{n}" for n in range(count)))
    for n in range(count):
        lines += [f"s{n}:" + (f" s{n - 1}" if chain and n else ""), "\t@true"]
    write(path, lines)


def ninjafile(path, count, chain):
    lines = ["rule run", "  command = true"]
    for n in range(count):
        lines.append(f"build s{n}: run" + (f" s{n - 1}" if chain and n else ""))
    write(path, lines)


def snakefile(path, count, chain):
    lines = ["rule all:", f"    input: expand('s{{n}}', n=range({count}))"]
    for n in range(count):
        lines.append(f"rule r{n}:")
        if chain and n:
            lines.append(f"    input: 's{n - 1}'")
        lines += [f"    output: touch('s{n}')", "    shell: 'true'"]
    write(path, lines)


def dodo(path, count, chain):
    lines = [
        "def task_s():",
        f"    for n in range({count}):",
        "        yield {",
        "            'name': str(n),",
        "            'actions': ['true'],",
        f"            'task_dep': [f's:{{n - 1}}'] if {chain} and n else [],",
        "        }",
    ]
    write(path, lines)


def playbook(path, count):
    lines = ["- hosts: localhost", "  connection: local", "  gather_facts: false", "  tasks:"]
    for n in range(count):
        lines += [f"    - name: s{n}", "      ansible.builtin.command: 'true'"]
    write(path, lines)


def contenders(lifeboat, venv, folder, count, chain, ansible_count):
    """Lifeboat and the others on one graph, each in a folder that is emptied before each run."""
    shape = "chain" if chain else "wide"
    home = os.path.join(folder, "home")
    os.makedirs(home, exist_ok=True)
    env = {"HOME": home, "XDG_CACHE_HOME": home}
    result = []

    def add(name, argv, files, **more):
        cwd = os.path.join(folder, shape, name)

        def prepare():
            shutil.rmtree(cwd, ignore_errors=True)
            files(cwd)

        result.append(Contender(name, argv, cwd, env, prepare, **more))

    if lifeboat:
        cwd = os.path.join(folder, shape, "lifeboat")
        add(
            "lifeboat",
            [lifeboat, "run", "plan.yaml", "--yes", "--state", "state"],
            lambda cwd: lifeboat_plan(f"{cwd}/plan.yaml", count, chain),
            proof=lambda: journal_has(cwd, count),
            note="journal on disk, every record synced",
        )
    add(
        "make",
        ["make", "-s", f"-j{JOBS}"],
        lambda cwd: makefile(f"{cwd}/Makefile", count, chain),
        note="keeps no state",
    )
    add(
        "ninja",
        ["ninja", "--quiet", f"-j{JOBS}"],
        lambda cwd: ninjafile(f"{cwd}/build.ninja", count, chain),
        note="log, not synced",
    )
    add(
        "doit",
        [f"{venv}/bin/doit", "-v0", "-n", str(JOBS), "-P", "thread"],
        lambda cwd: dodo(f"{cwd}/dodo.py", count, chain),
        note="state in a database, written at the end",
    )
    add(
        "snakemake",
        [f"{venv}/bin/snakemake", "--cores", str(JOBS), "--quiet", "all"],
        lambda cwd: snakefile(f"{cwd}/Snakefile", count, chain),
        rounds=1,
        note="a file a step",
    )
    if chain:  # it knows no other order
        add(
            "ansible-playbook",
            [f"{venv}/bin/ansible-playbook", "-i", "localhost,", "play.yaml",
             "-e", f"ansible_python_interpreter={venv}/bin/python"],
            lambda cwd: playbook(f"{cwd}/play.yaml", ansible_count),
            rounds=1,
            scale=count // ansible_count,
            note=f"keeps no state; {ansible_count} steps run, the time scaled to {count}",
        )
    return result


def journal_has(folder, count):
    """That every step was run and recorded."""
    found = 0
    for parent, _, files in os.walk(os.path.join(folder, "state")):
        if "journal.jsonl" in files:
            with open(os.path.join(parent, "journal.jsonl"), encoding="utf-8") as journal:
                found += sum('"step_finished"' in line for line in journal)
    if found != count:
        raise SystemExit(f"bench: the journal has {found} finished steps, not {count}")
