"""``launch``: plan, look at what is committed, run what is missing, publish. Again: resumes, or does nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from urc_sweep.errors import ResourceError, SpecError, StoreError
from urc_sweep.maths.ids import digest
from urc_sweep.plan import registry, spec
from urc_sweep.plan.expand import CLASSIFIERS, Known, expand, pinned_data
from urc_sweep.plan.source import Source
from urc_sweep.plan.spec import Sweep
from urc_sweep.plan.trials import Trial
from urc_sweep.run import ray_tune
from urc_sweep.run.conductor import Conductor
from urc_sweep.run.job import Job, fail, now
from urc_sweep.run.schedule import FAILED, Schedule
from urc_sweep.store.commits import Store
from urc_sweep.store.lease import Lease
from urc_sweep.store.tables import Projection, Publisher, is_current

PUBLISH_S = 1.0
DRAIN_S = 8.0  # Slurm and spot hosts kill soon after SIGTERM
LANES_ON_GPU = 8
EXECUTORS = ("ray", "inline")


@dataclass(frozen=True)
class Options:
    """What a launch may be told beside the sweep file; none of it changes a number."""

    store: str = "results"
    executor: str = "ray"
    address: str | None = None
    overrides: tuple[str, ...] = ()
    max_concurrent: int | None = None
    plugins: tuple[str, ...] = ()
    data_root: str | None = None
    offline: bool = False
    take_over: bool = False

    @property
    def source(self) -> Source:
        """Where data sets live, as every process finds it."""
        return Source(str(Path(self.data_root).resolve()) if self.data_root else None, self.offline)

    @property
    def absolute_plugins(self) -> tuple[str, ...]:
        """The plugins, files among them by absolute path."""
        return tuple(str(Path(p).resolve()) if p.endswith(".py") else p for p in self.plugins)

    def command(self, path: str, executor: bool = True) -> str:
        """Return the command line that does this launch again."""
        words = ["urc-sweep", "launch", path, "--store", self.store]
        words += [word for override in self.overrides for word in ("--set", override)]
        words += [word for plugin in self.plugins for word in ("--plugin", plugin)]
        words += ["--data-root", self.data_root] if self.data_root else []
        words += ["--offline"] if self.offline else []
        words += ["--executor", self.executor] if executor and self.executor != "ray" else []
        words += ["--max-concurrent", str(self.max_concurrent)] if executor and self.max_concurrent else []
        words += ["--address", self.address] if executor and self.address else []
        return shlex.join(words)


@dataclass
class Launch:
    """One launch of one sweep; ``run`` returns the exit code."""

    path: str
    options: Options
    on_event: Callable[[str, Trial | None], None] = lambda event, trial: None
    write_report: Callable[[Store, str, str], None] | None = None
    sweep: Sweep = field(init=False)
    trials: list[Trial] = field(init=False)
    store: Store = field(init=False)
    worked: bool = False
    stopped: str | None = None
    conductor: Any = None

    def __post_init__(self) -> None:
        if self.options.executor not in EXECUTORS:
            raise SpecError(f"--executor {self.options.executor}: choices: {', '.join(EXECUTORS)}")
        if self.options.address:
            check_address(self.options.address)
        self.store = Store(self.options.store)
        self.store.check()
        self.sweep, self.trials = plan(self.path, self.options)

    # -- what there is to do -------------------------------------------------------------------------------------

    @property
    def missing(self) -> list[Trial]:
        """Trials without a commit, a final failure, or something failed that they need."""
        statuses = self.schedule().state
        return [trial for trial in self.trials if statuses[trial.id] == "waiting"]

    def schedule(
        self, lanes: Callable[[str], int] = lambda stage: 1, automatic: Container[str] = (), slots: int = 1
    ) -> Schedule:
        """Return the schedule as commits and failures leave it."""
        trained = {t.id for t in self.trials if self.store.committed(t.id)}
        done = {t.id for t in self.trials if t.id in trained and self.store.committed(t.evaluation_id)}
        failures = {t.id: self.store.failures(t.id) for t in self.trials if t.id not in done}
        ended = {trial_id: self.store.final_failure(trial_id) for trial_id, found in failures.items() if found}
        failed = {trial_id: final["status"] for trial_id, final in ended.items() if final}
        attempted = {trial_id: f[-1]["attempt"] for trial_id, f in failures.items() if f}
        known: dict[str, Any] = {"trained": trained, "done": done, "failed": failed, "attempted": attempted}
        return Schedule(self.trials, **known, lanes=lanes, automatic=automatic, slots=slots)

    @property
    def exit_code(self) -> int:
        states = set(self.schedule().state.values())
        if "waiting" in states:
            return 130 if self.stopped is not None else 1
        return 3 if states & {*FAILED, "skipped"} else 0

    # -- doing it ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run what is missing and bring tables and report up to date; return the exit code."""
        name = self.sweep.name
        missing = self.missing
        if not missing and self._is_published():
            return self.exit_code
        source = self.options.source
        if missing:
            source.require(self.sweep.dataset.name)
            if source.missing(self.sweep.dataset.name):
                read_data(self.sweep, source)
        self.store.create()
        with Lease(self.store, name, self.options.take_over) as lease:
            if missing:
                self._take_checkpoints()
            self.worked = True
            self._write_plan()
            publisher = Publisher(Projection(self.store, name))
            publisher.publish()
            if self.missing:  # read again: another launch may have done it while we waited
                self._execute(publisher, lease)
            digest = publisher.projection.source()
            publisher.publish(stopped=self.stopped is not None)
            if self.write_report is not None:
                self.write_report(self.store, name, digest)
            # The table that names its source comes last: it says that all the rest is up to date.
            publisher.publish(stopped=self.stopped is not None, source=digest)
        return self.exit_code

    def _take_checkpoints(self) -> None:
        """Copy the classifiers that the sweep brings along into the store, once their weights fit their networks."""
        for role in CLASSIFIERS:
            for path, settings in self.sweep.variants(role):
                if settings.checkpoint is None:
                    continue
                from urc_sweep.learn import artifacts

                raw = (self.sweep.folder / settings.checkpoint).read_bytes()
                found = read_data(self.sweep, self.options.source)
                try:
                    misfit = artifacts.fits(settings.network, artifacts.from_bytes(raw), found, settings.label)
                except StoreError as error:
                    misfit = str(error)
                if misfit:
                    message = f"{settings.checkpoint} does not fit classifier {settings.network!r}: {misfit}"
                    raise self.sweep.problem((*path, "checkpoint"), f"{message}; name the network it was made with")
                self.store.put(raw, ".safetensors")

    def _is_published(self) -> bool:
        """Return whether tables and plan on disk are those of this very sweep and its commits."""
        name = self.sweep.name
        if not self.store.layout.generation(name, 0).is_file():
            return False
        projection = Projection(self.store, name)
        planned = [trial.to_json() for trial in self.trials] == projection.generation["trials"]
        return planned and is_current(self.store, name, projection.source())

    def _write_plan(self) -> None:
        text = Path(self.path).read_bytes()
        plan = {
            "generation": 0,
            "sequence": self.store.next_sequence(),
            "launched_at": now(),
            "spec_sha256": digest(text),
            "command": self.options.command(self.path, executor=False),
            "sweep": self.sweep.model_dump(mode="json"),
            "trials": [trial.to_json() for trial in self.trials],
        }
        self.store.replace(self.store.layout.spec(self.sweep.name), text)
        self.store.save_generation(self.sweep.name, plan)

    def _execute(self, publisher: Publisher, lease: Lease) -> None:
        sweep, options = self.sweep, self.options
        resources = {stage: spec.resources_of(sweep, stage) for stage in {trial.stage for trial in self.trials}}
        self.store.layout.stop(sweep.name).unlink(missing_ok=True)
        with _log(self), contextlib.ExitStack() as stack:
            cluster = None
            if options.executor == "ray":
                self.on_event(f"joining {options.address}" if options.address else "starting Ray", None)
                cluster = stack.enter_context(ray_tune.cluster(options.address))
                gpus = {stage: cluster.gpus_of(need) for stage, need in resources.items()}
            else:
                from urc_sweep.run import inline  # brings torch

                gpus = {stage: float(need.gpus != 0 and inline.has_gpu()) for stage, need in resources.items()}
            automatic = {stage for stage, need in resources.items() if need.lanes == "auto"}
            most = {stage: LANES_ON_GPU if gpus[stage] else 1 for stage in resources}
            lanes = {s: most[s] if need.lanes == "auto" else int(need.lanes) for s, need in resources.items()}
            slots = cluster.at_once(resources.values(), options.max_concurrent) if cluster else 1
            root = str(self.store.root.resolve())  # workers have another working directory
            dataset = tuple(spec.parameters_of("dataset", sweep.dataset).items())
            seconds = sweep.resources.checkpoint_minutes * 60
            share = min((share for share in gpus.values() if share), default=0.0)
            job = Job(root, sweep.name, options.source, dataset, options.absolute_plugins, seconds, share, git_sha())
            schedule = self.schedule(lanes.__getitem__, automatic, slots)
            self.conductor = Conductor(publisher.projection, schedule, self.on_event, sweep.budget)
            stack.enter_context(self._attended(publisher, lease))
            if cluster:
                ray_tune.run(self.conductor, job, cluster, resources, options.max_concurrent)
            else:
                inline.run(self.conductor, job)
        self.stopped = self.conductor.stopping
        if lease.lost.is_set():
            raise StoreError(f"{self.store.root}: {self.stopped}")
        if self.conductor.error is not None:
            raise self.conductor.error

    @contextlib.contextmanager
    def _attended(self, publisher: Publisher, lease: Lease) -> Iterator[None]:
        """Publish once a second, and turn Ctrl-C, SIGTERM, the stop file or a lost lease into a drain."""
        conductor, stop_file = self.conductor, self.store.layout.stop(self.sweep.name)
        end = threading.Event()
        signals: list[int] = []
        backstop = threading.Timer(DRAIN_S + 1, os._exit, (130,))
        backstop.daemon = True

        def attend() -> None:
            seen, asked = -1, 0.0
            while not end.wait(PUBLISH_S):
                if signals:
                    if signals[0] == signal.SIGTERM and not asked:
                        backstop.start()  # whatever hangs
                    asked = asked or time.monotonic()
                    conductor.stop(signal.Signals(signals[0]).name)
                    if signals[0] == signal.SIGTERM and time.monotonic() - asked > DRAIN_S:
                        self._leave(publisher, lease)
                if lease.lost.is_set():
                    conductor.stop("another launch took the store's lease over")
                    continue  # tables and stop file are the new holder's
                try:
                    if stop_file.exists():
                        conductor.stop("asked to by `urc-sweep stop`")
                    elif conductor.stopping:
                        stop_file.write_text(conductor.stopping)  # tells the workers
                    if conductor.changes != seen:
                        seen = conductor.changes
                        with conductor.lock:
                            publisher.publish(conductor.running())
                except (OSError, StoreError) as error:
                    conductor.stop(f"the store cannot be written: {error}")

        def on_signal(number: int, frame: FrameType | None) -> None:
            signals.append(number)  # the thread does the rest: a handler may interrupt anything
            if len(signals) > 1:
                raise KeyboardInterrupt

        thread = threading.Thread(target=attend, name="attend", daemon=True)
        thread.start()
        main = threading.current_thread() is threading.main_thread()
        caught = (signal.SIGINT, signal.SIGTERM) if main else ()  # elsewhere Python lets nobody handle signals
        previous = {number: signal.signal(number, on_signal) for number in caught}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            end.set()
            thread.join()
            backstop.cancel()
            if not lease.lost.is_set():
                stop_file.unlink(missing_ok=True)

    def _leave(self, publisher: Publisher, lease: Lease) -> None:
        """Leave at once, whatever still runs or hangs: what is committed is safe, the private cluster dies with us."""
        command = self.options.command(self.path)
        try:
            self.on_event(f"left {DRAIN_S:g} s after SIGTERM without waiting for workers; to go on: {command}", None)
            if not lease.lost.is_set():
                publisher.publish(stopped=True)
                self.store.layout.stop(self.sweep.name).unlink(missing_ok=True)
                lease.__exit__()
        finally:
            os._exit(130)


def check_address(address: str) -> None:
    """Raise ``ResourceError`` for a cluster that is not there, or on a network without a token."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    loopback = host in ("localhost", "[::1]", "") or re.fullmatch(r"127(\.\d+){3}", host)
    if not loopback and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ResourceError(f"--address {address}: refusing a cluster on the network without RAY_AUTH_MODE=token")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ResourceError(f"--address {address}: nobody answers there ({error}); expected HOST:PORT") from None


def plan(path: str, options: Options) -> tuple[Sweep, list[Trial]]:
    """Return the sweep of a file and its trials. Reads data only where a plugin's data set has no published hash."""
    registry.load_plugins(options.plugins)
    sweep = spec.load(path, options.overrides)
    known = None
    if pinned_data(sweep) is None:
        found = read_data(sweep, options.source)
        known = Known(found.sha256, found.image, found.label_names)
    return sweep, expand(sweep, known)


def read_data(sweep: Sweep, source: Source) -> Any:
    """Return the sweep's data, downloaded if need be. Brings torch: only for what cannot be known without the bytes."""
    for key in registry.find("dataset", sweep.dataset.name).facts.get("location", ()):
        source.inside(sweep.dataset.name, spec.parameters_of("dataset", sweep.dataset)[key])
    from urc_sweep.learn import data

    return data.load(sweep.dataset.name, spec.parameters_of("dataset", sweep.dataset), source)


def request_stop(store: Store, name: str) -> None:
    """Ask a running sweep to checkpoint and stop."""
    store.generation(name)
    store.replace(store.layout.stop(name), b"stop")


def reopen(store: Store, name: str) -> int:
    """Give a sweep's finally failed trials another round of attempts; return how many there were."""
    projection = Projection(store, name)
    failed = [trial for trial in projection.trials if projection.final_failure(trial.id)]
    with Lease(store, name) if failed else contextlib.nullcontext():
        for trial in failed:
            store.drop_checkpoint(trial.id)  # it may be what failed
            last = store.failures(trial.id)[-1]
            fail(store, trial, last["attempt"] + 1, sweep=name, status="reopened", final=False)
            projection.forget(trial.id)
        if failed:
            Publisher(projection).publish()
    return len(failed)


@contextlib.contextmanager
def _log(launch: Launch) -> Iterator[None]:
    """Append every event to the sweep's driver.log as well."""
    said = launch.on_event
    with open(launch.store.layout.driver_log(launch.sweep.name), "a", encoding="utf-8") as file:
        print(f"{now()} launch urc-sweep {version('urc-sweep')} {launch.options.command(launch.path)}", file=file)

        def say(event: str, trial: Trial | None) -> None:
            name = "" if trial is None else f" {trial.stage} {trial.id[:12]}"
            with contextlib.suppress(OSError):  # a full disk: whoever writes results there says so
                print(f"{now()} {event}{name}", file=file, flush=True)
            with contextlib.suppress(OSError, SystemExit):  # rich's answer to a pipe that nobody reads
                said(event, trial)

        launch.on_event = say
        try:
            yield
        finally:
            launch.on_event = said


def git_sha() -> str | None:
    """Return the commit of the checkout this package runs from, ``None`` for an installed one."""
    here = Path(__file__).resolve().parent.parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    return None
