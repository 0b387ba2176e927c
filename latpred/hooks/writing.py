"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
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
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise HookError(f"a folder that can be written to is needed for {target} ({error}): name another") from error


def _umask() -> int:
    """What files are not to be: it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
