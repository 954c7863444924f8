"""Optional libraries: extras of the package, imported only where a setting asks for them."""

from importlib.util import find_spec

from hylo.core.errors import MissingDependency


def need(library: str, setting: str, extra: str, otherwise: str) -> None:
    """Reject a setting whose library is missing, without importing the library.

    Args:
        library: name of the module.
        setting: what needs it, such as `tracking=trackio`.
        extra: the extra `hylo[<extra>]` that installs it.
        otherwise: a setting that does without it.

    Raises:
        MissingDependency: the library is not installed.
    """
    if find_spec(library) is None:
        raise MissingDependency(
            f"{setting} needs the library {library}, which is not installed\n"
            f"    fix:     pip install 'hylo[{extra}]', or {otherwise}"
        )
