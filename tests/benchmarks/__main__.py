"""Every figure about speed and size, measured side by side in one run, as ratios where there is a counterpart.

On an idle machine: python -m tests.benchmarks [--quick] [--only loops,tricks,jobs,orchestration,tables,page] [-o FILE]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PARTS = ("loops", "tricks", "jobs", "orchestration", "tables", "page")
PACKAGES = ("urc-sweep", "torch", "ray", "pyarrow", "pandas", "plotly")


def machine() -> str:
    """Return what the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # a machine for the loops alone
            continue
    cores = len(os.sched_getaffinity(0))
    head = f"{cores} cores of {model[0] if model else platform.machine()}, {memory:.0f} GiB, {platform.system()}"
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{head} {platform.release()}{gpu}; Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows: whether it works, not how fast")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("-o", "--output", type=Path, help="also write the tables there, as Markdown")
    options = parser.parse_args()
    if wrong := sorted({*options.only.split(",")} - {*PARTS}):
        parser.error(f"--only {wrong[0]}: choices: {', '.join(PARTS)}")
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"# Benchmarks, {datetime.date.today().isoformat()}\n")
    say(f"`python -m tests.benchmarks {' '.join(sys.argv[1:])}`\n")
    say(machine())
    for part in options.only.split(","):
        module = importlib.import_module(f"tests.benchmarks.{part}")
        say(f"\n## {part}\n\n{module.__doc__.strip()}\n\n| measured | value |\n|---|---|")
        for name, value in module.measure(options.quick):
            say(f"| {name} | {value.strip()} |")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
