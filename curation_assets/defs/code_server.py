"""A code server whose runs share its container: `python -m curation_assets.defs.code_server OPTIONS`.

Runs end with their server, but Dagster cannot detect that: they would stay STARTED and occupy the GPU's pool forever.
Therefore the next server marks them as failed before it starts. If a launcher starts a machine for every run, use
`dagster code-server start` itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from curation_assets.defs.dead_runs import fail_runs_of_dead_ui
from curation_assets.defs.instance import open_instance
from curation_assets.workspace.workspace import Workspace, dagster_home


def serve(options: Sequence[str]) -> None:
    """Fail the runs that the last server left behind, and exec `dagster code-server start OPTIONS`."""
    workspace = Workspace.load()
    with open_instance(workspace) as instance:
        # The lock is inherited by the process that this one becomes.
        fail_runs_of_dead_ui(instance, dagster_home(workspace))
    os.execvp("dagster", ["dagster", "code-server", "start", *options])


if __name__ == "__main__":
    serve(sys.argv[1:])
