"""Results that are computed ahead, in threads, and handed over in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Result = TypeVar("Result")

# Beyond one for each thread: what is ready while the threads are at work.
READY = 2


def prefetched(
    read: Callable[[Key], Result], keys: Iterable[Key], workers: int
) -> Iterator[Result]:
    """read(key) for every key, in the order of the keys, some of them ahead of time.

    An error of `read` is raised where its result would have come.

    Example:
        >>> list(prefetched(abs, [-3, 2, -1], workers=2))
        [3, 2, 1]
    """
    left = iter(keys)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="vaekern-read") as pool:
        try:
            for key in itertools.islice(left, READY + workers):
                waiting.append(pool.submit(read, key))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, key) for key in itertools.islice(left, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
