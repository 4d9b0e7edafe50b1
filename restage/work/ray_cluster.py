"""Workers as Ray actors on any number of machines; a node that comes gets workers, one that goes loses its tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from restage.records import InputError, MissingExtra
from restage.work.pool import Message, WorkerHandle, run_pool
from restage.work.task import EngineConfig, Event, Report, Task, TaskQueue
from restage.work.worker import Worker, WorkerSettings

__all__ = ["run_ray"]

OBJECT_STORE_BYTES = 80 * 2**20
"""Size of the object store of a cluster that is started here: only tasks and reports pass through it."""
LOOK_S = 2.0
"""Seconds between looks at which nodes are there."""


class ActorWorker:
    """Runs in the actor: a worker, and a flag by which another thread stops it."""

    def __init__(self, settings: WorkerSettings, device: str) -> None:
        self.stop_flag = threading.Event()
        self.worker = Worker(settings, device, is_stopping=self.stop_flag.is_set)

    def ready(self) -> str:
        """Returns its name, once it runs."""
        return self.worker.name

    def work(self, tasks: Sequence[Task[Any]]) -> list[Report]:
        """Work through tasks; those that were not begun when it was stopped are not reported."""
        reports = []
        for task in tasks:
            reports.append(self.worker.work(task))
            if self.stop_flag.is_set() or reports[-1].status not in ("done", "found"):
                break
        return reports

    def stop(self) -> None:
        """Give up after the present step."""
        self.stop_flag.set()


class _Actor:
    def __init__(self, ray: Any, actor: Any, place: str) -> None:
        self.ray, self.actor, self.place = ray, actor, place
        self.name = f"actor at {place}"
        self.is_ready = False
        self.reference = actor.ready.remote()
        self.sent: list[Task[Any]] = []

    def send(self, tasks: Sequence[Task[Any]]) -> None:
        self.sent = list(tasks)
        self.reference = self.actor.work.remote(self.sent)

    def ask_to_stop(self) -> None:
        with contextlib.suppress(Exception):  # nothing is wanted of a dead actor
            self.actor.stop.remote()

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor)

    def hear(self, worker: WorkerHandle) -> Message:
        try:
            answer = self.ray.get(self.reference)
        except self.ray.exceptions.RayError as error:
            self.reference = None
            return Message(worker, gone=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        self.reference = None
        if not self.is_ready:
            self.is_ready, self.name = True, answer
            return Message(worker, is_ready=True)
        return Message(worker, reports=tuple(answer), is_idle=True)


class _Cluster:
    def __init__(self, ray: Any, settings: WorkerSettings) -> None:
        self.ray, self.settings = ray, settings
        self.actor_type = ray.remote(ActorWorker)
        self.looked_s, self.found_places = -LOOK_S, list[str]()

    def places(self) -> list[str]:
        """A place for each worker that the nodes which are alive have room for."""
        now = time.monotonic()
        if now - self.looked_s >= LOOK_S:
            self.looked_s = now
            nodes = [node for node in self.ray.nodes() if node["Alive"]]
            has_gpus = self.settings.device != "cpu" and any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
            kind, amount = ("GPU", 1) if has_gpus else ("CPU", self.settings.threads or 1)
            self.found_places = [
                f"{node['NodeID']}/{kind}#{number}"
                for node in sorted(nodes, key=lambda node: node["NodeID"])
                for number in range(int(node["Resources"].get(kind, 0) // amount))
            ]
        return self.found_places

    def start(self, place: str) -> WorkerHandle:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node, _, kind = place.partition("/")
        is_gpu = kind.startswith("GPU")
        threads = self.settings.threads or 1
        # Not by calls alone: Ray runs an actor's methods in threads of its own, and limits set by calls hold in one.
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        environment = {**dict.fromkeys(names, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}
        options = self.actor_type.options(
            num_cpus=0 if is_gpu else threads,
            num_gpus=1 if is_gpu else 0,
            max_restarts=0,  # the pool decides what is replaced, and when
            max_concurrency=2,  # so that `stop` is heard while `work` works
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": environment},
        )
        return _Actor(self.ray, options.remote(self.settings, "cuda:0" if is_gpu else "cpu"), place)

    def wait(self, workers: Sequence[WorkerHandle], timeout_s: float) -> list[Message]:
        actors = {worker.reference: worker for worker in workers if isinstance(worker, _Actor) and worker.reference}
        if not actors:
            time.sleep(timeout_s)
            return []
        done, _ = self.ray.wait(list(actors), num_returns=len(actors), timeout=0)
        if not done:  # nothing was there at once: wait for the first
            done, _ = self.ray.wait(list(actors), num_returns=1, timeout=timeout_s)
        return [actors[reference].hear(actors[reference]) for reference in done]


def _connect(ray: Any, config: EngineConfig) -> bool:
    """Join the cluster, or start one of this machine; returns whether it was done here, and so is to be undone."""
    if ray.is_initialized():
        return False
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    address = config.address or os.environ.get("RAY_ADDRESS")
    local = {"address": "local", "object_store_memory": OBJECT_STORE_BYTES}
    options: dict[str, Any] = {"address": address} if address else local
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, include_dashboard=None if address else False, logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no Ray cluster answers at {address or 'this machine'}: {reason}; run: ray start, or, if it is there and "
            "asks for its token, set RAY_AUTH_MODE=token and copy ~/.ray/auth_token from where it was started"
        ) from None
    finally:
        for number, handler in handlers.items():  # Ray's own would end the driver where it stands
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)
    return True


def run_ray(queue: TaskQueue, settings: WorkerSettings, config: EngineConfig) -> Iterator[Event]:
    """Do all tasks of the queue on a Ray cluster."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "cluster") from None
    is_ours = _connect(ray, config)
    try:
        yield from run_pool(_Cluster(ray, settings), queue, config)
    finally:
        if is_ours:
            ray.shutdown()
