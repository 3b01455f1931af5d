"""The quick tests on every Python, and with the lowest versions of the dependencies.

nox                            # every row of the matrix
nox -s tests-3.13              # one row
nox -s lowest -- tests/models  # some of its tests; other options of pytest likewise
"""

import configparser

import nox

QUICK = ("pytest", "-m", "not slow")


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session):
  """The newest versions of all dependencies."""
  session.install("-e", ".[test]")
  session.run(*QUICK, *session.posargs)


@nox.session(python="3.11")
def lowest(session):
  """The lowest versions that setup.cfg names."""
  constraints = f"{session.create_tmp()}/lowest.txt"
  with open(constraints, "w") as file:
    file.writelines(f"{requirement}\n" for requirement in lowest_versions())
  session.install("-e", ".[test]", "--constraint", constraints)
  # Packages of that time use what those of today deprecate.
  session.run(*QUICK, "-W", "default::DeprecationWarning", *session.posargs)


def lowest_versions():
  """The lower bounds of all that `.[test]` installs, as exact versions."""
  config = configparser.ConfigParser()
  config.read("setup.cfg")
  extras = config["options.extras_require"]
  groups = (
    config["options"]["install_requires"],
    *(extras[name] for name in ("training", "experiments", "test")),
  )
  lines = (line for group in groups for line in group.split())
  return [line.replace(">=", "==") for line in lines if ">=" in line]
