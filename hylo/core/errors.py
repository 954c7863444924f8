"""The errors a user can act on. Each message names the value, what is allowed, and the fix."""


class HyloError(Exception):
    """Base of all errors that are shown to the user as one screen of text, without a traceback."""


class ConfigError(HyloError, ValueError):
    """The configuration is impossible. Raised before anything expensive starts and before anything is written."""

    def __init__(self, *problems: str) -> None:
        assert problems, "a ConfigError names at least one problem"
        self.problems = problems
        super().__init__("\n".join(problems))


class MissingDependency(HyloError):
    """A model or data source cannot be reached; the message says which command makes it available."""


class RecordError(HyloError, ValueError):
    """A record on disk is damaged or of another schema version; the message names the file."""


class MergeRefused(HyloError, ValueError):
    """An adapter cannot be written into the base model's weights; the message says why. Nothing was changed."""


class TrainingDiverged(HyloError):
    """Training met more non-finite losses than allowed, or left a model whose evaluation meets one."""


def problem(key: str, value: object, allowed: str, fix: str) -> str:
    """One configuration problem in the form every message of this project takes."""
    return f"{key} = {value!r}\n    allowed: {allowed}\n    fix:     {fix}"
