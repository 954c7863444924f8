"""Names that become folders, file names and rows of tables."""

import hashlib
import re
from collections.abc import Iterator

from hylo.core.errors import problem

LONGEST = 100
"""Characters of a name. A run's folder adds a seed and a fingerprint, and file systems allow 255 bytes."""
_NAME = re.compile(r"[\w,=+-][\w.,=+-]*")


def name_problems(key: str, name: str) -> Iterator[str]:
    """Yields why a name cannot be one: it must be a single path component that a person can read and type."""
    if not _NAME.fullmatch(name) or len(name) > LONGEST:
        shown = name if len(name) <= LONGEST else f"{name[:LONGEST]}... ({len(name)} characters)"
        allowed = f"1 to {LONGEST} letters, digits and _.,=+-, not beginning with a dot"
        yield problem(key, shown, allowed, f"{key}={file_name(name)[:20] or 'a_name'}")


def file_name(text: str) -> str:
    """The text as a name: at most `LONGEST` characters, with all but letters, digits and `_.,=+-` replaced."""
    safe = "".join(letter if letter.isalnum() or letter in "_.,=+-" else "-" for letter in text).lstrip(".")
    return safe if len(safe) <= LONGEST else f"{safe[:88]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
