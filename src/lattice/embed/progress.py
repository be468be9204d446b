"""A progress bar on standard error, for those who asked or who would wait before a silent terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FROM_TEXTS = 2000  # unasked, fewer texts show nothing


@contextmanager
def progress(texts: int, show: bool | None) -> Iterator[Callable[[int], object]]:
    """Give a function that is told of texts done; `show` None decides by their number and the terminal."""
    if show is None:
        show = texts >= FROM_TEXTS and sys.stderr.isatty()
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Embedding", total=texts)
        yield lambda done: bar.advance(task, done)
