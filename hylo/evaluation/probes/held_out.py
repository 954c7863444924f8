"""The text of probes that read real text: one's own files, or the held-out plays of the default text."""

from hylo.data.base import Document, Split
from hylo.data.files import matching_files, read_text
from hylo.data.shakespeare import SHAKESPEARE

KEY = "probe.files"
"""The setting that names one's own files."""


def held_out_documents(files: list[str]) -> list[Document]:
    """The documents of `probe.files`; of an empty list, the plays that no run of data=shakespeare trains on.

    Raises:
        ConfigError: a path or pattern names no file, or one that is not UTF-8 text.
        MissingDependency: the plays are not available.
    """
    if not files:
        return SHAKESPEARE.documents(Split.test)
    paths = dict.fromkeys(path for pattern in files for path in matching_files(pattern, KEY))
    return [Document(str(path), read_text(path, KEY)) for path in paths]
