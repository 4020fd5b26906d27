"""Installed versions."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "nibabel",
    "nilearn",
    "pycocoevalcap",
)
UNKNOWN = "unknown"


def package_version(name: str) -> str:
    """Look up the installed version of a package.

    Parameters
    ----------
    name : str
        Name of the distribution, such as "scikit-learn".

    Returns
    -------
    str
        The version, or "unknown" where the package is not installed.

    Examples
    --------
    >>> package_version("no-such-package")
    'unknown'
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN
