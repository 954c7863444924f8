"""The text of probes that read real text: one's own files, or the held-out plays of the default text."""

from hylo.data.base import Document, Split
from hylo.data.files import matching_files
from hylo.data.shakespeare import SHAKESPEARE


def held_out_documents(files: list[str]) -> list[Document]:
    """The documents of `probe.files`; of an empty list, the plays that no run of data=shakespeare trains on.

    Raises:
        ConfigError: a path or pattern names no file.
        MissingDependency: the plays are not available.
    """
    if not files:
        return SHAKESPEARE.documents(Split.test)
    paths = dict.fromkeys(path for pattern in files for path in matching_files(pattern, "probe.files"))
    return [Document(str(path), path.read_text(encoding="utf-8", errors="replace")) for path in paths]
