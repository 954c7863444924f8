"""The errors a user can act on. Each message names the value, what is allowed, and the fix."""


class HyloError(Exception):
    """Base class of the errors shown to the user as text, without a traceback."""


class ConfigError(HyloError, ValueError):
    """The configuration is invalid. Raised before anything expensive starts and before anything is written."""

    def __init__(self, *problems: str) -> None:
        assert problems, "a ConfigError names at least one problem"
        self.problems = problems
        super().__init__("\n".join(problems))


class MissingDependency(HyloError):
    """A model, data source or library is not available; the message says how to get it."""


class RecordError(HyloError, ValueError):
    """A record on disk is damaged or has another schema version; the message names the file."""


class MergeRefused(HyloError, ValueError):
    """An adapter cannot be merged into the base model's weights; the message says why. Nothing was changed."""


class OutOfMemory(HyloError):
    """A run needed more memory than its device has; the message says what was estimated and what to lower."""


class TrainingDiverged(HyloError):
    """Training hit more non-finite losses than allowed, or left a model whose evaluation hits one."""


def first_line(error: object) -> str:
    """The first line of an error's message, or of a text; the error's class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def problem(key: str, value: object, allowed: str, fix: str) -> str:
    """One configuration problem, in the format of every message of this project."""
    return f"{key} = {value!r}\n    allowed: {allowed}\n    fix:     {fix}"
