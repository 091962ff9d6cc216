"""Record of the search folders that the user has begun, because pickles of strangers can run any code.

A search writes a random token into its folder, and a file named after the token into the cache of the
package, where only the user writes. A folder from elsewhere has no token that is known here.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from pathlib import Path

TOKEN = "begun_by"
KIND = re.compile("[0-9a-f]{32}")


def remember(folder: Path) -> None:
    """Record that the user has begun a search in a folder.

    Parameters
    ----------
    folder
        Folder of a search.
    """
    token = secrets.token_hex(16)
    (folder / TOKEN).write_text(token)
    with contextlib.suppress(OSError):  # without the record, resuming needs `allow_pickle=True`
        known().mkdir(parents=True, exist_ok=True, mode=0o700)
        (known() / token).write_text(str(folder))


def check(folder: Path) -> None:
    """Refuse a folder in which the user has not begun a search.

    Parameters
    ----------
    folder
        Folder of a search.
    """
    token = (folder / TOKEN).read_text()[:100] if (folder / TOKEN).is_file() else ""
    if not KIND.fullmatch(token) or not (known() / token).is_file():
        msg = (
            f"`folder={str(folder)!r}` was not begun by you on this machine. Going on with it reads "
            "Ray's pickles, which can run any code when they are read. Pass `allow_pickle=True` if you trust "
            "who made it, or another folder."
        )
        raise ValueError(msg)


def known() -> Path:
    """Return the folder in the cache that has a file for each token."""
    import pooch

    return Path(pooch.os_cache("scalloy")) / "searches"
