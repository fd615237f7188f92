"""A small real store with everything a release can leave behind. ``tests/store/first_release`` is one, for ever.

Made by ``python -m tests.store.release tests/store/first_release``. Never made again for a later release: that its
files still open is what it is for. If ids change on purpose (``LOOP_VERSION``, a component's version), then only the
test that nothing is trained again changes with them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from unittest import mock

from tests.conftest import small_sweep
from urc_sweep.learn.train import CompressorLane
from urc_sweep.run.launch import Launch, Options, request_stop

# At the weight POISON the loss is made NaN: an end-to-end and a universal trial diverge.
POISON = 0.03
FINISHED = {"epochs": 2, "weights": f"[0, 0.01, {POISON}]"}
# Stopped at the first step of its first pack: two checkpoints are left.
STOPPED = {"epochs": 3, "weights": "[0.01, 0.02]", "lanes": 2}
NAMES = ("small", "paused")


def text_of(name: str) -> str:
    """Return the sweep file of one of the two; its networks are as small as they get, the store is committed."""
    text = small_sweep(**(FINISHED if name == "small" else STOPPED)).replace("name: small", f"name: {name}")
    text = text.replace("width: 0.05", "width: 0.02")
    return text.replace("heldout_classifier: {", "heldout_classifier: {network: paper, ")


def make(store: Path) -> None:
    """Run two sweeps: one to its end, with two diverged trials, one that is stopped."""
    codes, losses = {}, CompressorLane.losses

    def poisoned(lane, inputs):
        factor = float("nan") if lane.trial.weights["classification"] == POISON else 1.0
        return {name: value * factor for name, value in losses(lane, inputs).items()}

    # Paths and hosts are part of records; those of a test are nobody's.
    with (
        contextlib.chdir(store.parent),
        mock.patch.object(socket, "gethostname", return_value="node"),
        mock.patch.object(CompressorLane, "losses", poisoned),
    ):
        for name in NAMES:
            path = Path(f"{name}.yaml")
            path.write_text(text_of(name))
            launch = Launch(str(path), Options(store=store.name, executor="inline"))

            def stop(event, trial, launch=launch, name=name):
                if name == "paused" and event == "started":
                    request_stop(launch.store, name)

            launch.on_event = stop
            codes[name] = launch.run()
            path.unlink()
    assert codes == {"small": 3, "paused": 130}, codes


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    make(target)
    shutil.rmtree(target / "tmp")
    for log in target.glob("sweeps/*/driver.log"):
        os.unlink(log)
