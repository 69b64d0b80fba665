"""Grades on a Dask cluster: the coordinator's side. What happens on the other side stands in `runners.py`.

No file system is shared. Both ends trust each other as one program does: reach the scheduler by TLS, or on a network of
your own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import math
import pickle
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import CancelledError, Future
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client
from distributed.scheduler import KilledWorker

from grader.bench import Bench
from grader.errors import InfrastructureError, PackageMissing, SchedulerLost, UsageError, WorkerLost
from grader.executors import Attempt, Workers
from grader.runners import Package, answer, carried, grade_carried, leave, on_runner, pack, require_address
from grader.types import Submission

log = logging.getLogger(__name__)
CONNECT_S = 10.0
WHO_S = 10.0  # the scheduler may take to say whose answer one is
GONE_S = 900.0  # without a scheduler; then the batch stops, to be gone on with by the same command
LOOK_EVERY_S = 1.0
RESOURCE = {"cpu": "CPU", "gpu": "GPU"}
_GONE = (OSError, RuntimeError, TimeoutError)  # what Dask's client raises without a scheduler


class Cluster(Workers):
    """The runners of one scheduler, each with one submission at a time."""

    is_remote = True

    def __init__(
        self,
        address: str,
        bench: Bench | None,
        device: str = "cpu",
        *,
        limit_s: float | None = None,
        gone_s: float = GONE_S,
    ) -> None:
        """Connect; `limit_s` bounds a task (default: by the profile). Raises UsageError if nobody answers there."""
        require_address(address, "client")
        self._address, self._resource, self._gone_s = address, RESOURCE[device], gone_s
        self._limit_s = limit_s
        self._package = pack(bench) if bench else b""
        self._sha256 = hashlib.sha256(self._package).hexdigest()
        self._plugin = f"grader-{self._sha256}"  # the same again after a kill: nothing piles up
        self._name, self._numbers = f"grader-{uuid.uuid4()}", itertools.count()  # tasks of one key are one task to Dask
        self._keys: WeakKeyDictionary[Future[Any], str] = WeakKeyDictionary()
        self._places: dict[str, str] = {}  # by key, where a task was seen last
        self._answered: dict[str, str] = {}  # by key, who has done it, by the word of the scheduler
        self._missing: set[Future[Any]] = set()
        self._dismissed: set[str] = set()
        self._offering: set[str] = set()  # runners there were when we looked last, without those dismissed
        self._asked: WeakKeyDictionary[Future[Any], set[str]] = WeakKeyDictionary()  # the only runners that may do it
        self._slots, self._lost_at = 0, 0.0
        try:
            self._connect()
            self._look()
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UsageError(
                f"no scheduler answers at {address} ({said}): start one with `dask scheduler`, or correct --scheduler."
            ) from error

    def _connect(self) -> None:
        self._client = Client(self._address, timeout=CONNECT_S, name="grader", set_as_default=False)
        self._executor = self._client.get_executor(pure=False, resources={self._resource: 1}, retries=0)
        self._scheduler_id, self._looked_at = "", -math.inf

    def _look(self) -> None:
        """Learn who is there, at most once in a while; a scheduler that is new gets the package."""
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        if self._client.status != "running":
            raise OSError("the client is about to connect again")
        ask: Any = self._client.sync
        scheduler: Any = self._client.scheduler
        seen = ask(scheduler.identity, n_workers=-1, callback_timeout=CONNECT_S)
        if seen["id"] != self._scheduler_id:
            self._register()
            self._scheduler_id = seen["id"]
        offers = {address: worker["resources"] for address, worker in seen["workers"].items()}
        self._offering = {address for address in offers if self._resource in offers[address]} - self._dismissed
        self._slots = round(sum(offers[address][self._resource] for address in self._offering))
        processing = ask(scheduler.processing, workers=None, callback_timeout=CONNECT_S)
        ours = set(self._keys.values())  # those not yet forgotten
        places = self._places | {str(key): address for address, keys in processing.items() for key in keys}
        self._places = {key: address for key, address in places.items() if key in ours}
        for key in set(self._answered) - ours:
            del self._answered[key]
        self._give_up_lost()
        self._looked_at = time.monotonic()

    def _register(self) -> None:
        """Have every runner brought the package; one that cannot take it is no reason to stop."""
        try:
            self._client.register_plugin(Package(self._sha256, self._package), name=self._plugin)
        except _GONE:
            raise
        except Exception as error:  # noqa: BLE001  whatever a runner raised; the scheduler has it and goes on
            log.warning("A runner could not take the batch's package: %s", " ".join(str(error).split()))

    def _give_up_lost(self) -> None:
        """End those that nobody can answer any more, and those that Dask's client has forgotten without an answer."""
        known = set(self._client.futures)
        for future, asked in list(self._asked.items()):
            if not asked & self._offering and not future.done():
                self._end(future, WorkerLost("the runners that were asked are gone"))
        missing = {future for future, key in list(self._keys.items()) if not future.done() and key not in known}
        for future in missing & self._missing:  # seen twice: not just between two steps
            self._end(future, SchedulerLost("its result was lost with the scheduler"))
        self._missing = missing

    def _end(self, future: Future[Any], error: BaseException) -> None:
        with contextlib.suppress(futures.InvalidStateError):  # it is done meanwhile
            future.set_exception(error)

    @property
    def slots(self) -> int:
        """How many runners there are now; 0 while there is no scheduler.

        Raises:
            InfrastructureError: there has been none for long.
        """
        try:
            if self._client.status == "closed":
                self._connect()
            self._look()
        except _GONE as error:
            self._lost_at = self._lost_at or time.monotonic()
            if time.monotonic() - self._lost_at > self._gone_s:
                raise InfrastructureError(
                    f"the scheduler at {self._address} has been gone for {self._gone_s:.0f} s: start it again, then "
                    "run the same command; it goes on where it stopped."
                ) from error
            return 0
        self._lost_at = 0.0
        return self._slots

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future raises SchedulerLost if the scheduler goes away."""
        return self._send(on_runner, self._sha256, self._limit_s, fn, args, kwargs)

    def _send(self, fn: Callable[..., Any], *args: Any, avoid: Sequence[str] = ()) -> Future[Any]:
        """Have a runner's Dask worker itself call a function."""
        key, outer = f"{self._name}-{next(self._numbers)}", Future[Any]()
        self._keys[outer] = key
        outer.set_running_or_notify_cancel()
        others = self._others(avoid) if avoid or self._dismissed else set()  # one dismissed may still be there
        if others:
            self._asked[outer] = set(others)
        try:
            inner = self._executor.submit(answer, fn, args, key=key, workers=sorted(others) or None)
        except _GONE:
            outer.set_exception(SchedulerLost(f"the scheduler at {self._address} does not answer"))
        else:
            client = self._client
            inner.add_done_callback(lambda done: self._pass_on(done, outer, key, client))
        return outer

    def _others(self, avoid: Sequence[str]) -> set[str]:
        """The runners that are none of `avoid`, on other machines if there are any; its last are given up first."""
        for count in range(len(avoid), 0, -1):
            hosts = {_host(address) for address in avoid[:count]}
            others = self._offering - set(avoid[:count])
            if others:
                return {address for address in others if _host(address) not in hosts} or others
        return self._offering

    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        try:
            files = carried(submission)
        except InfrastructureError as error:
            gone: Future[Attempt] = Future()
            gone.set_exception(error)
            return gone
        return self._send(on_runner, self._sha256, self._limit_s, grade_carried, (submission, files), {}, avoid=avoid)

    def where(self, future: Future[Any]) -> str:
        key = self._keys.get(future, "")
        return self._answered.get(key) or self._places.get(key, "")

    def dismiss(self, worker: str) -> None:
        self._dismissed.add(worker)
        self._offering.discard(worker)
        with contextlib.suppress(Exception):  # if it cannot be reached, it can do no harm either
            self._client.run(leave, workers=[worker], on_error="ignore")

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it is to be over, whatever state it is in
            self._client.close(timeout=1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and not cancel_futures:
            futures.wait(list(self._keys))
        with contextlib.suppress(Exception):  # all is recorded by now
            if self._client.status == "running":
                self._client.unregister_worker_plugin(self._plugin)
            self._client.close(timeout=5)

    def _pass_on(self, inner: Future[Any], outer: Future[Any], key: str, client: Client) -> None:
        """An outcome in the words of all executors."""
        error = CancelledError() if inner.cancelled() else inner.exception()
        if error is None:  # the scheduler forgets whose it is once `inner` is forgotten here
            loop: Any = client.loop
            loop.add_callback(self._pass_on_answer, inner, outer, key, client)
        elif isinstance(error, CancelledError):
            self._end(outer, SchedulerLost("the connection to the scheduler was lost"))
        elif isinstance(error, KilledWorker):
            self._end(outer, WorkerLost(f"{error.allowed_failures + 1} runners were lost, one after the other"))
        else:
            self._end(outer, InfrastructureError(f"unexpected {type(error).__name__}: {_said(error)}"))

    async def _pass_on_answer(self, inner: Future[Any], outer: Future[Any], key: str, client: Client) -> None:
        """In the loop of Dask's client."""
        who = await self._who_did(key, client)
        self._answered[key] = who
        error, value = _read(inner.result())
        if not who:
            error = SchedulerLost("the scheduler does not say whose answer it is")
        elif who not in self._asked.get(outer, {who}):
            error = WorkerLost("somebody answered who was not asked")
        elif isinstance(error, PackageMissing):
            self._scheduler_id = ""  # it is brought again
        if error is not None:
            return self._end(outer, error)
        with contextlib.suppress(futures.InvalidStateError):  # given up meanwhile
            outer.set_result(value)

    async def _who_did(self, key: str, client: Client) -> str:
        """Who answered, by the word of the scheduler: what an answer says about that itself could be anything."""
        scheduler: Any = client.scheduler
        try:
            found = await asyncio.wait_for(scheduler.who_has(keys=[key]), WHO_S)
            (who,) = found[key]
        except Exception:  # noqa: BLE001  it, or the runner, is gone since: then who was seen with it
            return self._places.get(key, "")
        return str(who)


def _read(data: bytes) -> tuple[BaseException | None, Any]:
    """The error that a task ended with, or None and its result."""
    try:
        error, value = pickle.loads(data)
        if isinstance(error, SchedulerLost) or not isinstance(error, Exception | None):
            raise ValueError("no task ends so")
        str(error).encode()
    except Exception as unreadable:  # noqa: BLE001  of another version, or damaged
        return InfrastructureError(f"the answer of a runner cannot be read: {_said(unreadable)}"), None
    return error, value


def _said(error: BaseException) -> str:
    return str(error).encode(errors="replace").decode()


def _host(address: str) -> str:
    """The machine of an address such as tcp://10.0.0.7:8786."""
    return address.rpartition(":")[0]
