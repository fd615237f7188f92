"""``reproduce``: train one committed trial again, beside the store, and compare. "Trust us" as a command."""

from __future__ import annotations

import math
import tempfile
from typing import Any

from urc_sweep.errors import SpecError, StoreError
from urc_sweep.plan import registry
from urc_sweep.plan.spec import Chosen, parameters_of
from urc_sweep.plan.trials import Trial
from urc_sweep.run.job import Job
from urc_sweep.run.launch import Options
from urc_sweep.store.commits import Record, Store

TOLERANCE = 0.02  # relative, of a metric on another device or with other versions


def reproduce(store: Store, sweep: str, trial: Trial, options: Options) -> tuple[bool, str]:
    """Train and evaluate a trial again and return whether it came out the same, and a sentence on what was compared.

    On the CPU, with the same torch, networks, curve and metrics must be equal bit for bit. Elsewhere the metrics
    must agree within ``TOLERANCE``. What the trial needs is taken from the store, its bytes checked; nothing in the
    store changes.
    """
    from urc_sweep.run.worker import execute_pack  # brings torch

    was, judged = (store.committed(commit_id) for commit_id in (trial.id, trial.evaluation_id))
    if was is None or judged is None:
        raise SpecError(f"trial {trial.id[:12]} is not done: there is nothing to compare with")
    registry.load_plugins(options.plugins)
    chosen = Chosen.model_validate(store.generation(sweep)["sweep"]["dataset"])
    with tempfile.TemporaryDirectory(prefix="urc-reproduce-") as folder:
        beside = Store(folder)
        beside.create()
        beside.save_generation(sweep, {"trials": [trial.to_json()]})
        for need in trial.required:
            _lend(store, beside, need)
        if checkpoint := trial.config.get("checkpoint"):
            beside.put(store.get(checkpoint, ".safetensors"), ".safetensors")
        dataset = tuple(parameters_of("dataset", chosen).items())
        gpu = was["device"] != "cpu"
        job = Job(folder, sweep, options.source, dataset, options.absolute_plugins, math.inf, gpu)
        told: list[dict[str, Any]] = []
        execute_pack(job, (trial.id,), (1,), told.append)
        now, judgement = beside.committed(trial.id), beside.committed(trial.evaluation_id)
        if now is None or judgement is None:
            why = [f"{f['error_type']}: {f['error_message']}" for f in beside.failures(trial.id)]
            why += [event["reason"] for event in told if "reason" in event]
            raise StoreError(f"trial {trial.id[:12]} was done, but now fails: {'; '.join(why)}")
    return _compare(was, judged, now, judgement)


def _lend(store: Store, beside: Store, trial_id: str) -> None:
    """Copy a commit and its networks."""
    record = store.committed(trial_id)
    if record is None:
        raise StoreError(f"{store.layout.commit(trial_id)} is missing, but the trial needs it")
    for sha256 in {*record["artifacts"].values(), *record["used"].values()}:
        beside.put(store.get(sha256, ".safetensors"), ".safetensors")
    beside.commit(trial_id, record)


def _compare(was: Record, judged: Record, now: Record, judgement: Record) -> tuple[bool, str]:
    parts = {"networks": was["artifacts"] == now["artifacts"], "metrics": judged["metrics"] == judgement["metrics"]}
    parts["curve"] = [point[:4] for point in was["curve"]] == [point[:4] for point in now["curve"]]
    different = [name for name, same in parts.items() if not same]
    if not different:
        return True, "the same bits: " + ", ".join(parts)
    keys = ("device", "torch_version", "host")
    other = [f"{key} {now[key]} instead of {was[key]}" for key in keys if now[key] != was[key]]
    if was["device"] != "cpu":
        other.append("a GPU adds up in no fixed order")
    if not other:
        return False, f"{' and '.join(different)} differ"
    worst, where = max(
        (abs(value - again) / max(abs(value), 1e-6), f"{split} {name} {value:.6g} -> {again:.6g}")
        for split, metrics in judged["metrics"].items()
        for name, value in metrics.items()
        if value is not None and (again := judgement["metrics"][split].get(name)) is not None
    )
    return worst <= TOLERANCE, f"{'; '.join(other)}; largest relative difference {worst:.2g} ({where})"
