"""The one loop over many fits: what is there already, what an executor brings, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pyro_nfvi._map_fits.job import Job, JobResult, do_job
from pyro_nfvi._map_fits.results_folder import ResultsFolder, keys_of
from pyro_nfvi._processes.tasks import Executor, TaskRun
from pyro_nfvi._progress_bar import progress_bar


@dataclass(frozen=True)
class JobsDone:
    """Results of many jobs.

    Attributes:
        results: By the number of the job; jobs that Ctrl-C prevented are missing.
        keys: Key of each job.
        attempts: How often each job was begun, by number; 0 for one that was there.
        interrupted: Whether Ctrl-C came.
        num_workers: Processes that ran the fits; 0 where an executor had them.
        note: Why they ran in one process, if they did against the request.
    """

    results: dict[int, JobResult]
    keys: Sequence[str]
    attempts: dict[int, int]
    interrupted: bool
    num_workers: int
    note: str


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor | None,
    folder: ResultsFolder | None,
    num_workers: int | None,
    *,
    keyed: bool,
    title: str,
    progress: bool,
) -> JobsDone:
    """Run jobs, those of equal content once; Ctrl-C ends it, and what is done is kept.

    Args:
        jobs: The fits.
        executor: Where to; None is processes of this machine.
        folder: Where results are kept and looked up.
        num_workers: See :class:`TaskRun`.
        keyed: Name results by their content, so that those that are there are found; else by
            their number.
        title: Words in front of the bar.
        progress: Show a bar.
    """
    keys = keys_of(jobs) if keyed else [str(number) for number in range(len(jobs))]
    results: dict[int, JobResult] = {}
    attempts: dict[int, int] = {}
    same: dict[int, list[int]] = {}
    first: dict[str, int] = {}
    for number, (key, job) in enumerate(zip(keys, jobs)):
        found = folder.read(key, job) if folder is not None else None
        if found is not None:
            results[number], attempts[number] = found, 0
        elif key in first:
            same[first[key]].append(number)
        else:
            first[key] = number
            same[number] = [number]
    left = list(same)
    run = TaskRun(do_job, executor, num_workers and max(1, min(num_workers, len(left))))
    interrupted, failed = False, 0
    bar = progress_bar(title, len(jobs), unit="fit", show=progress, done=len(results))
    try:
        with bar, closing(run.run([jobs[number] for number in left])) as outcomes:
            for place, outcome in outcomes:
                number = left[place]
                result = outcome.value or JobResult(error=outcome.error)
                if folder is not None:
                    result = folder.write(keys[number], result)
                for one in same[number]:
                    results[one], attempts[one] = result, outcome.attempts
                failed += bool(result.error) * len(same[number])
                if failed:
                    bar.set_postfix_str(f"{failed} failed", refresh=False)
                bar.update(len(same[number]))
    except KeyboardInterrupt:
        interrupted = True
    workers = 0 if executor is not None else run.num_workers or 1
    return JobsDone(results, keys, attempts, interrupted, workers, run.note)
