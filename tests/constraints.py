"""Print constraints.txt for the packages of this environment: `python -m tests.constraints`."""

from __future__ import annotations

from importlib import metadata

HEAD = """\
# The versions that CI has passed with. `make demo`, `make install` and `make test` install these, so that a release of
# some dependency does not break a newcomer. To update: install without this file, run `make check test test-system`,
# then `make constraints`. tests/test_install.py keeps it in step with pyproject.toml."""
LEFT_OUT = {"pip", "setuptools", "wheel", "curation-assets"}


def main() -> None:
    """Print every installed distribution but our own, with its public version: `2.13.0`, not `2.13.0+cpu`."""
    found = {one.name: one.version.partition("+")[0] for one in metadata.distributions()}
    print(HEAD)
    for name in sorted(found, key=str.lower):
        if name.lower() not in LEFT_OUT:
            print(f"{name}=={found[name]}")


if __name__ == "__main__":
    main()
