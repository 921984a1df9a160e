"""Runs the cases of a family: bind, verify, calibrate, measure."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.case import Bound, Case, Family, Inputs, Memory, Offer
from bench.device import DEVICES, Device
from bench.limits import Limits
from bench.memory import Mode, memory_mode
from bench.peers import fresh_compiler
from bench.result import Row, Timed
from bench.rotation import sets_of_inputs
from bench.timing import Contender, Plan, Spread, Stopwatch, fastest, measure

LIMIT = "the limit"
"""The contender that is no peer."""


@dataclass(frozen=True)
class Settings:
    """How to run, as stored with the result."""

    rounds: int
    threads: int
    modes: tuple[Mode, ...]
    rest: float
    sample: float
    cache: int
    """Bytes that the sets of a cold case must exceed, ``rotation.MARGIN`` times."""
    quick: bool
    device: str = "cpu"

    def plan(self, case: Case, before_call: Callable[[], object]) -> Plan:
        batched = not case.cold or DEVICES[self.device].asynchronous
        return Plan(self.rounds, self.rest, self.sample, batched, before_call)


@dataclass(frozen=True)
class Job:
    """One row to measure."""

    case: Case
    mode: Mode

    @property
    def memory(self) -> Memory:
        labels: dict[str, Memory] = {"out": "out=", "inplace": "in place"}
        return labels.get(self.case.output, self.mode)


def jobs(cases: Sequence[Case], modes: Sequence[Mode]) -> list[Job]:
    """Mode by mode, because changing it concerns the whole process; fresh first, while the
    allocator is as the process found it. A case whose outputs are small or given runs once, as the
    mode makes no difference to it; so does one whose data stays in cache, which its outputs only do
    where the allocator keeps them."""
    return [Job(case, mode) for mode in modes for case in cases if mode in _modes(case, modes)]


GIVEN_BACK = 128 << 10
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: so large a block may go back when it is freed."""


def _modes(case: Case, modes: Sequence[Mode]) -> Sequence[Mode]:
    if case.output != "fresh" or case.traffic.write < GIVEN_BACK:
        return modes[:1]
    return modes if case.cold else modes[-1:]


@dataclass(frozen=True)
class Measurement:
    """The times of one job, and the peers without one."""

    job: Job
    times: dict[str, Timed]
    absent: dict[str, str]
    roof: float | None
    """Work per second of the limit in turn with the contenders; None where the case has none."""

    def row(self, limits: Limits) -> Row:
        if self.roof is not None:
            limits = replace(limits, **{str(self.job.case.roof): self.roof})
        return Row.build(self.job.case, self.job.memory, limits, self.times, self.absent)


def run(
    family: Family,
    jobs: Sequence[Job],
    settings: Settings,
    watch: Stopwatch | None = None,
    announce: Callable[[Job], object] = lambda job: None,
) -> Iterator[Measurement]:
    """Yields a measurement for every job. ``announce`` is told which job begins."""
    torch.set_num_threads(settings.threads)
    device = DEVICES[settings.device]
    watch = watch or device.watch()
    for mode in dict.fromkeys(job.mode for job in jobs):
        with memory_mode(mode) as before_call:
            for job in (j for j in jobs if j.mode == mode):
                announce(job)
                with fresh_compiler(), _grad_mode(job.case):
                    plan = settings.plan(job.case, before_call)
                    measured = _measure_case(family, job.case, device, settings, plan, watch)
                    yield Measurement(job, *measured)


def _grad_mode(case: Case) -> contextlib.AbstractContextManager[Any]:
    return torch.enable_grad() if case.trains else torch.inference_mode()


def _measure_case(
    family: Family, case: Case, device: Device, settings: Settings, plan: Plan, watch: Stopwatch
) -> tuple[dict[str, Timed], dict[str, str], float | None]:
    sets = sets_of_inputs(case, settings.cache)
    tensors = [family.inputs(case, seed) for seed in range(sets)]
    truth = family.truth(case, tensors[0])
    bound: dict[str, list[tuple[Offer, Contender]]] = {}
    absent: dict[str, str] = {}
    for offer in family.offers(case, settings.threads):
        if offer.build is None:
            absent[offer.peer] = offer.reason
            continue
        try:
            bind = offer.build()
            wrong = _verify(family, case, offer, bind, truth)
            if wrong:
                raise ValueError(wrong)
            calls = [bind(t).run for t in tensors]
        except Exception as error:  # a peer that fails is a finding, not the end of the run
            absent[offer.peer] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        contender = Contender(f"{offer.peer} {offer.variant}", calls)
        bound.setdefault(offer.peer, []).append((offer, contender))
    chosen = {peer: _best(variants, plan, watch) for peer, variants in bound.items()}
    contenders = [replace(c, name=peer) for peer, (_, c) in chosen.items()]
    if case.roof:
        contenders.append(Contender(LIMIT, device.at_the_roof(case, sets, settings.threads)))
    samples = measure(contenders, plan, watch)
    roof = case.work / statistics.median(samples[LIMIT]) if case.roof else None
    times = {
        peer: Timed(Spread.of(samples[peer]), offer.variant, offer.competes)
        for peer, (offer, _) in chosen.items()
    }
    return times, {peer: why for peer, why in absent.items() if peer not in times}, roof


def _best(
    variants: list[tuple[Offer, Contender]], plan: Plan, watch: Stopwatch | None
) -> tuple[Offer, Contender]:
    """The variant of a peer that a few samples show to be the fastest."""
    calibration = replace(plan, rounds=min(plan.rounds, 3))
    name = fastest([contender for _, contender in variants], calibration, watch)
    return next(v for v in variants if v[1].name == name)


def _verify(
    family: Family, case: Case, offer: Offer, bind: Callable[[Inputs], Bound], truth: Any
) -> str:
    """What is wrong with the offer's result on the first set of inputs; empty if nothing."""
    candidate = bind(family.inputs(case, 0))  # its own copy: in-place cases change their inputs
    result = candidate.outputs(candidate.run())
    return family.compare(case, result, truth) if offer.competes else ""
