"""The executor without Ray: one pack after another in this process, by the same three-method contract."""

from __future__ import annotations

from urc_sweep.learn.artifacts import choose_device
from urc_sweep.run.conductor import FINISHED, Conductor
from urc_sweep.run.job import Job
from urc_sweep.run.worker import execute_pack


def has_gpu() -> bool:
    """Return whether this process would train on a GPU."""
    return choose_device(True)[0].type == "cuda"


def run(conductor: Conductor, job: Job) -> None:
    """Execute the schedule to its end."""
    number = 0
    while True:
        handle = f"inline-{number}"
        config = conductor.suggest(handle)
        if config is None or isinstance(config, str):
            assert config == FINISHED, "nothing is live between two packs, so there is work or an end"
            return
        execute_pack(
            job,
            tuple(config["trials"]),
            tuple(config["attempts"]),
            lambda event, handle=handle: conductor.on_result(handle, event),  # type: ignore[misc]
        )
        conductor.on_complete(handle, crashed=False)
        number += 1
