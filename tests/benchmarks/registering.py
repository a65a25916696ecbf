"""What many files at once cost the sensors, and whether people can still look at them.

    python -m tests.benchmarks.registering

A thousand small files land at once, and the landing sensor is ticked as the daemon ticks it, on a SQLite home, until
each of them is a partition; then the scoring sensor, which finds all of them due. Then two web servers, one with 10
partitions and one with all of them materialized, are asked in turn for the partitions page of `raw_corpus` in headless
Chromium: the time from the request until the list of partitions is shown.

The last line is one JSON object: `ticks` of the landing sensor that registered something, `slowest_tick_share` (the
slowest tick of either sensor over the daemon's time limit), `page_ratio` (median over rounds of the page's time with
all partitions over that with 10).
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg

from curation_assets.config.config_file import CONFIG_VARIABLE
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.instance import open_instance
from curation_assets.defs.partitions import SHARDS
from curation_assets.workspace.workspace import HOME_VARIABLE, Workspace, dagster_home
from tests.benchmarks.common import finish, median_ratio, parser, table
from tests.models import write_tiny_model
from tests.pipeline.daemon import Daemon
from tests.pipeline.workspaces import make_workspace, rows

TICK_LIMIT_S = 60.0
"""DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS, unless it is set."""
MOST_TICKS = 20


def name_of(number: int) -> str:
    """A landing file."""
    return f"part-{number:04d}.jsonl"


def landed_workspace(folder: Path, model: Path, files: int) -> Workspace:
    """A workspace where so many files of one row have just landed."""
    return make_workspace(folder, model, {name_of(n): rows(1, start=n) for n in range(files)})


def tick_until_registered(workspace: Workspace, instance: dg.DagsterInstance, files: int) -> dict[str, Any]:
    """Tick the sensors; how many ticks registered something, and the seconds of the slowest of each."""
    daemon = Daemon(workspace, instance)
    seconds: dict[str, list[float]] = {"landing": [], "scoring": []}
    registered = [0]
    for _ in range(MOST_TICKS):
        started = time.perf_counter()
        daemon.tick("landing")
        seconds["landing"].append(time.perf_counter() - started)
        registered.append(len(instance.get_dynamic_partitions(str(SHARDS.name))))
        if registered[-1] == files:
            break
    assert registered[-1] == files, registered
    started = time.perf_counter()
    requests = daemon.scoring()
    seconds["scoring"].append(time.perf_counter() - started)
    assert requests
    return {
        "ticks": sum(after > before for before, after in pairwise(registered)),
        "slowest_landing_tick_s": round(max(seconds["landing"]), 2),
        "scoring_tick_s": round(seconds["scoring"][0], 2),
    }


def materialize_all(instance: dg.DagsterInstance) -> None:
    """Have Dagster know of every partition as of one that has been read."""
    for shard in instance.get_dynamic_partitions(str(SHARDS.name)):
        event = dg.AssetMaterialization(RAW_CORPUS_KEY, partition=shard, metadata={"dagster/partition_row_count": 1})
        instance.report_runless_asset_event(event)


@contextmanager
def web_server(workspace: Workspace) -> Iterator[str]:
    """Dagster's web server on a workspace, without a daemon; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "dagster-webserver"), "-m", "curation_assets.definitions"]
    command += ["--port", str(port)]
    environment = os.environ | {
        CONFIG_VARIABLE: str(workspace.config_file),
        HOME_VARIABLE: str(workspace.folder / ".dagster"),
    }
    log = workspace.folder / "web.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_up(address, log)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_up(address: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/server_info", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise SystemExit(f"the web server did not come up:\n{log.read_text()[-2000:]}")


def page_seconds(browser: Any, address: str) -> float:
    """From the request of the partitions page until the first of its partitions is shown, in a fresh window."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    try:
        page = context.new_page()
        started = time.perf_counter()
        page.goto(f"{address}/assets/raw_corpus?view=partitions")
        page.get_by_text(name_of(0), exact=True).first.wait_for(timeout=120_000)
        return time.perf_counter() - started
    finally:
        context.close()


def time_pages(workspaces: dict[int, Workspace], rounds: int) -> dict[int, list[float]]:
    """Seconds of the page in each round, by the number of partitions; the first round is not counted."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium on the PATH: install it (apt-get install chromium)")
    seconds: dict[int, list[float]] = {count: [] for count in workspaces}
    with ExitStack() as stack:
        servers = {count: stack.enter_context(web_server(workspace)) for count, workspace in workspaces.items()}
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        for number in range(rounds + 1):
            for count, address in servers.items():
                took = page_seconds(browser, address)
                if number:
                    seconds[count].append(took)
        browser.close()
    return seconds


def main() -> None:
    """Register files and time the pages."""
    options = parser(__doc__)
    given = options.parse_args()
    few, many = (5, 20) if given.small else (10, 1_000)
    before = os.environ.get(HOME_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="curation-registering-") as place:
        folder = Path(place)
        model = write_tiny_model(folder / "model")
        workspaces, result = {}, {}
        for count in (few, many):
            workspace = workspaces[count] = landed_workspace(folder / f"of-{count}", model, count)
            os.environ[HOME_VARIABLE] = str(folder / f"of-{count}" / ".dagster")
            with open_instance(workspace) as instance:
                assert dagster_home(workspace) == folder / f"of-{count}" / ".dagster"
                result = tick_until_registered(workspace, instance, count)
                materialize_all(instance)
        seconds = time_pages(workspaces, given.rounds)
    if before is None:
        del os.environ[HOME_VARIABLE]
    else:
        os.environ[HOME_VARIABLE] = before
    slowest = max(result["slowest_landing_tick_s"], result["scoring_tick_s"])
    result = {"files": many} | result | {"slowest_tick_share": round(slowest / TICK_LIMIT_S, 4)}
    result |= {"page_ratio": median_ratio(seconds[many], seconds[few])}
    medians = [(count, round(statistics.median(times), 2)) for count, times in seconds.items()]
    print(table(("partitions", "page, s (median)"), medians))
    finish("registering", result, given)


if __name__ == "__main__":
    main()
