"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from latpred.errors import HookError

__all__ = ["write"]


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file; one that is there already is replaced at once, and stays where writing fails.

    Raises
    ------
    HookError
        Where its folder is missing, full, or not to be written to.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}")  # of this writer alone
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise HookError(f"a folder that can be written to is needed for {target} ({error}): name another") from error
