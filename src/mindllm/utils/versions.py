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
    """The installed version of a package, or 'unknown'."""
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN
