"""What Python asks the package for: the version, and which names are public."""

import sys


def __getattr__(name: str) -> str:
    """`__version__`, from the metadata of the installed package."""
    if name != "__version__":
        raise AttributeError(f"module 'chorax' has no attribute {name!r}")
    # Reading metadata takes time, and nobody needs it to `import chorax`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("chorax")
    except PackageNotFoundError:
        raise AttributeError(
            "`chorax.__version__` is read from the metadata of the installed package, "
            "and chorax is not installed. Run `pip install .` in its folder."
        ) from None


def __dir__() -> list[str]:
    return sys.modules["chorax"].__all__
