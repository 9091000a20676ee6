"""Processor time of one process with its children, and the core that it runs on."""

import os
import resource
import time


class Clock:
    """Seconds and processor seconds since it was made, compilers that were called included."""

    def __init__(self):
        self.begin = time.perf_counter(), processor()

    def read(self, prefix=""):
        seconds, cpu = time.perf_counter() - self.begin[0], processor() - self.begin[1]
        return {f"{prefix}seconds": seconds, f"{prefix}cpu": cpu}


def processor():
    found = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        found += used.ru_utime + used.ru_stime
    return found


def one_core():
    """Stay on the core that ``NFVI_BENCHMARK_CORE`` names, threads and children too."""
    core = os.environ.get("NFVI_BENCHMARK_CORE")
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
