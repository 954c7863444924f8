"""Rows of a data set from the Hugging Face hub, or of a local folder in the same format, loaded with `datasets`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import HfHubHTTPError

from hylo.core.errors import ConfigError, MissingDependency, first_line, problem


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A data set on the hub."""

    repo: str
    """owner/name on the hub, or the path of a local folder in the same format."""
    subset: str | None
    """Configuration of the data set, if it has several."""
    revision: str | None
    """Branch, tag or commit; None: main."""

    def rows(self, split: str, *, streamed: bool) -> Any:
        """The rows of one of its splits, a `datasets` object. Iterate it inside `explained`.

        Raises:
            MissingDependency: it cannot be fetched.
            ConfigError: it does not load.
        """
        import datasets

        with self.explained():
            return datasets.load_dataset(
                os.path.expanduser(self.repo),
                self.subset,
                split=split,
                revision=self.revision,
                streaming=streamed and "[" not in split and "+" not in split,  # streams are neither cut nor joined
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns errors of `datasets` into ones a user can act on."""
        from datasets.exceptions import DatasetGenerationError

        try:
            yield
        except ConfigError:
            raise
        except (HfHubHTTPError, OSError) as error:
            raise MissingDependency(
                f"data.repo = {self.repo!r} cannot be fetched from the Hugging Face hub: {first_line(error)}\n"
                f"    With network: check the name, `hf auth login` for gated data, and unset HF_HUB_OFFLINE.\n"
                f"    Without network: data=shakespeare needs none; data=text reads local files; "
                f"data.repo=<folder> reads a local copy."
            ) from error
        except (ValueError, RuntimeError, StopIteration, DatasetGenerationError) as error:
            allowed = f"a data set that loads ({first_line(error.__cause__ or error)})"
            fix = "check data.repo, data.subset and data.splits"
            raise ConfigError(problem("data.repo", self.repo, allowed, fix)) from error


def split_of(splits: dict[str, str], name: str, *, shared: bool = False) -> str:
    """The data set's split for one of ours.

    Args:
        splits: the data set's split for each of ours, by name.
        name: of ours.
        shared: several of ours may be parts of one.

    Raises:
        ConfigError: there is none, or another one of ours is the same.
    """
    key, theirs = f"data.splits.{name}", splits.get(name)
    if theirs is None:
        raise ConfigError(problem(key, None, "a split of the data set, or a slice of one", f"+{key}={name}"))
    for other_name, other in splits.items():
        if other == theirs and other_name != name and not shared:
            fix = "slice one split, for example train[:90%] and train[90%:]"
            raise ConfigError(problem(key, theirs, f"a different split from data.splits.{other_name}", fix))
    return theirs
