"""The changes worth trying on a machine for some models: few, since each takes about a minute."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.tuning.choice import Change, Value
from service.tuning.search import Step

OF_MODELS = frozenset({"batch_buckets", "instances", "threads"})
OF_ALL = frozenset({"workers", "decode_threads"})
"""Settings that are tuned, unless they are given."""
_PAYS = 0.97
"""A larger batch pays where an image in it takes at most this part of its time in the next smaller one."""
_MOST_INSTANCES = 8
_MANY_CORES = 8
"""From so many on, more than two workers are tried."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model before anything is tried."""

    name: str
    device: str
    """The resolved one, such as `cpu` or `cuda:0`."""
    run_ms: Mapping[int, float]
    """The time of a run by batch size, as the model was warmed up with the settings given."""
    fixed: frozenset[str]
    """Settings that are given for it."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The processor's cores: those that may be kept busy, and those that the service's defaults count on."""

    usable: int
    counted: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Find them out: a group's quota of processor time, and where the process may run, limit what is usable."""
        usable = len(os.sched_getaffinity(0))
        try:
            quota, period = _CPU_MAX.read_text().split()
        except (OSError, ValueError):  # no such group, or none that is limited
            quota = period = "max"
        if quota != "max":
            usable = min(usable, max(math.ceil(int(quota) / int(period)), 1))
        return cls(usable, os.cpu_count() or 1)


def steps(models: Sequence[ModelFacts], *, cores: Cores, fixed: frozenset[str]) -> list[Step]:
    """Return what to try, in order: each model's own by asking that one, then those of all by asking all.

    `fixed` are the settings of all models that are given.
    """
    own = [
        Step(Change(model.name, values), (model.name,)) for model in models for values in _of_model(model, cores=cores)
    ]
    names = tuple(model.name for model in models)
    return own + [Step(Change(None, values), names) for values in _of_all(cores=cores, fixed=fixed)]


def _of_model(model: ModelFacts, *, cores: Cores) -> list[dict[str, Value]]:
    changes: list[dict[str, Value]] = []
    if "batch_buckets" not in model.fixed:
        changes += [{"batch_buckets": buckets} for buckets in bucket_lists(model.run_ms)]
    pairs = _instances_and_threads(cores) if model.device == "cpu" else [{"instances": 2}]
    for pair in pairs:
        free = {name: value for name, value in pair.items() if name not in model.fixed}
        if free and free not in changes and free != {"instances": 1}:
            changes.append(free)
    return changes


def bucket_lists(run_ms: Mapping[int, float]) -> list[tuple[int, ...]]:
    """Return lists of batch sizes in place of those measured: those that pay, and one more where the largest does."""
    sizes = sorted(run_ms)
    paying = sizes[:1]
    for size in sizes[1:]:
        if run_ms[size] / size <= _PAYS * run_ms[paying[-1]] / paying[-1]:
            paying.append(size)
    found = []
    if paying[-1] == sizes[-1]:
        found.append((*paying, 2 * sizes[-1]))
    found.append(tuple(paying))
    return [each for each in found if each != tuple(sizes)]


def _instances_and_threads(cores: Cores) -> list[dict[str, Value]]:
    """Return pairs whose product is about the cores: more and more runs at once, and one that leaves cores free."""
    usable = cores.usable
    counts = itertools.takewhile(lambda count: count <= min(usable, _MOST_INSTANCES), (2, 4, 8))
    alone = [usable] if usable < cores.counted else []
    alone += [count for count in dict.fromkeys((usable // 2, usable - 1)) if count >= 1]
    pairs: list[dict[str, Value]] = [{"instances": count, "threads": usable // count} for count in counts]
    return pairs + [{"instances": 1, "threads": count} for count in alone]


def _of_all(*, cores: Cores, fixed: frozenset[str]) -> list[dict[str, Value]]:
    changes: list[dict[str, Value]] = []
    if "workers" not in fixed:
        most = (2, 4) if cores.usable >= _MANY_CORES else (2,)
        changes += [{"workers": count} for count in most if count <= cores.usable]
    if "decode_threads" not in fixed:
        counts = [cores.usable] if cores.usable < cores.counted else []
        counts += [count for count in dict.fromkeys((cores.usable // 2, cores.usable // 4)) if count >= 1]
        changes += [{"decode_threads": count} for count in counts]
    return changes
