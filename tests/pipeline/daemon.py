"""A daemon for tests: ticks sensors and automation conditions in this process, and runs what they ask for."""

from __future__ import annotations

import dagster as dg

from curation_assets.definitions import build_definitions
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import arrive


class Daemon:
    """Ticks sensors and runs what they ask for, in this process."""

    def __init__(self, workspace: Workspace, instance: dg.DagsterInstance) -> None:
        self.workspace = workspace
        self.instance = instance
        self.defs = build_definitions(workspace)
        self.cursors: dict[str, str | None] = {}
        self.seen: set[str] = set()
        self.condition_cursor: object = None

    def tick(self, name: str) -> dg.SensorResult | dg.SkipReason:
        """Evaluate a sensor on what has landed and apply what it gives, runs excepted."""
        arrive(self.workspace)
        sensor = self.defs.get_sensor_def(name)
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            resources={"workspace": self.workspace},
            definitions=self.defs,
        )
        result = sensor(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        self.cursors[name] = context.cursor
        if isinstance(result, dg.SensorResult):
            self.cursors[name] = result.cursor or context.cursor
            for request in result.dynamic_partitions_requests or []:
                self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
            for event in result.asset_events or []:
                self.instance.report_runless_asset_event(event)
        return result

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Run a request once; a run key that was seen is not run again, as in the daemon."""
        job = self.defs.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=list(request.asset_selection or []),
            tags=dict(request.tags),
            partition_key=request.partition_key,
            raise_on_error=False,
        )

    def scoring(self) -> list[dg.RunRequest]:
        """What the scoring sensor asks for and the daemon would not drop."""
        result = self.tick("scoring")
        if isinstance(result, dg.SkipReason):
            return []
        requests = [r for r in result.run_requests or [] if r.run_key not in self.seen]
        self.seen.update(str(r.run_key) for r in requests)
        return requests

    def settle(self) -> list[str]:
        """Tick until nothing is asked for; gives the assets of every run, in order."""
        done = []
        self.tick("landing")
        self.tick("landing")
        for _ in range(10):
            requests = self.scoring()
            if not requests:
                break
            for request in requests:
                assert self.run(request).success
                done.append("+".join(sorted(key.to_user_string() for key in request.asset_selection or [])))
        return done

    def conditions(self) -> set[tuple[str, str | None]]:
        """One tick of the automation conditions: the assets and partitions that are asked for."""
        result = dg.evaluate_automation_conditions(
            defs=self.defs,
            instance=self.instance,
            cursor=self.condition_cursor,  # type: ignore[arg-type]
            asset_selection=dg.AssetSelection.all(),
        )
        self.condition_cursor = result.cursor
        asked = set()
        for evaluated in result.results:
            subset = evaluated.true_subset
            if subset.is_empty:
                continue
            keys = list(subset.expensively_compute_partition_keys()) if subset.is_partitioned else [None]
            asked |= {(evaluated.key.to_user_string(), key) for key in keys}
        return asked

    def carry_through(self) -> list[str]:
        """Everything that a daemon would do until nothing is asked for; gives the assets of every run, in order."""
        done: list[str] = []
        for _ in range(12):
            runs = self.settle()
            asked = self.conditions()
            # Assets that are made together are asked for together.
            for partition in sorted({partition for _, partition in asked}, key=str):
                keys = sorted(key for key, own in asked if own == partition)
                self.materialize(*(dg.AssetKey(key.split("/")) for key in keys), partition=partition)
                runs.append("+".join(keys))
            done += runs
            if not runs:
                return done
        raise AssertionError(f"it never comes to rest: {done[-6:]}")

    def reload(self) -> None:
        """Load curation.yaml anew, as a code location does."""
        self.workspace = Workspace.load(self.workspace.config_file)
        self.defs = build_definitions(self.workspace)

    def materialize(self, *keys: dg.AssetKey, partition: str | None = None) -> None:
        """Materialize assets, as the automation sensor would."""
        request = dg.RunRequest(asset_selection=list(keys), partition_key=partition)
        assert self.run(request).success
