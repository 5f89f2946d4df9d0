"""The versions and the settings of JAX under which the suite has to pass.

    nox -f tests/noxfile.py                       # All of it.
    nox -f tests/noxfile.py -s tests              # Versions of Python and packages.
    nox -f tests/noxfile.py -s "strict(rbg)"      # One setting.
    nox -f tests/noxfile.py -s as_users           # Compiled as it is for users.
    nox -f tests/noxfile.py -s thorough           # The laws on 2,000 models each.
    nox -f tests/noxfile.py --list

All but `thorough` run what `pytest` leaves out as slow, and each law on 60 models. What
follows `--` goes to pytest. `tests` makes environments of its own; `strict`, `as_users`
and `thorough` run in the one that is active, where `pip install -e ".[test]"` has been.
"""

import tomllib
from pathlib import Path

import nox


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The bounds are all lower ones, so each is the oldest version that it admits.
VERSIONS = {
    "oldest": [bound.replace(">=", "==") for bound in PROJECT["dependencies"]],
    "newest": [],
}
MATRIX = [
    ("3.11", "oldest"),
    ("3.11", "newest"),
    ("3.12", "newest"),
    ("3.13", "newest"),
]
SETTINGS = {
    "x64": {"JAX_ENABLE_X64": "1"},
    "debug_nans": {"JAX_DEBUG_NANS": "1"},
    "custom_prng": {"JAX_ENABLE_CUSTOM_PRNG": "1"},
    "rbg": {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
    "unsafe_rbg": {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg"},
    "disable_jit": {"JAX_DISABLE_JIT": "1"},
}
EVERYTHING = ["-m", "slow or not slow", "--hypothesis-profile=laws"]
LAWS = ["tests/test_laws.py", "tests/test_option_laws.py"]
nox.options.error_on_missing_interpreters = True


@nox.session
@nox.parametrize("python,versions", MATRIX, ids=["-".join(x) for x in MATRIX])
def tests(session: nox.Session, versions: str) -> None:
    """All tests, in an environment of their own."""
    run_suite(session, versions)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """All tests on the oldest packages, with the Python that runs this."""
    run_suite(session, "oldest")


def run_suite(session: nox.Session, versions: str) -> None:
    session.chdir(ROOT)
    session.install("-e", ".[test]", *VERSIONS[versions])
    session.run("pytest", *EVERYTHING, *session.posargs)


@nox.session(venv_backend="none")
@nox.parametrize("setting", list(SETTINGS), ids=list(SETTINGS))
def strict(session: nox.Session, setting: str) -> None:
    """All tests, under a setting of JAX."""
    session.chdir(ROOT)
    session.run("pytest", *EVERYTHING, *session.posargs, env=SETTINGS[setting])


@nox.session(venv_backend="none", default=False)
def as_users(session: nox.Session) -> None:
    """All tests, compiled as for users, with the types of arguments checked."""
    session.chdir(ROOT)
    env = {"XLA_FLAGS": "--xla_backend_optimization_level=3", "CHECK_TYPES": "1"}
    session.run("pytest", *EVERYTHING, *session.posargs, env=env)


@nox.session(venv_backend="none", default=False)
def thorough(session: nox.Session) -> None:
    """Each law on 2,000 random models; it takes hours."""
    session.chdir(ROOT)
    session.run("pytest", "--hypothesis-profile=thorough", *LAWS, *session.posargs)
