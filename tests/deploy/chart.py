"""What is known of Dagster's Helm chart, for want of helm: its keys, and what it makes of those that values.yaml sets.

The keys are those of the chart's schema; `*` stands for anything that Kubernetes or Dagster check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

POD = ("annotations", "affinity", "nodeSelector", "tolerations", "podSecurityContext", "securityContext", "resources")
SERVER = (
    *("image", "env", "envConfigMaps", "envSecrets", "deploymentLabels", "labels", "schedulerName", "volumes"),
    *("volumeMounts", "livenessProbe", "readinessProbe", "startupProbe", *POD),
)
IMAGE = ("repository", "tag", "pullPolicy")
RUN_POD = ("containerConfig", "podSpecConfig", "podTemplateSpecMetadata", "jobSpecConfig", "jobMetadata")
LAUNCHER = (
    *("image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile", "envConfigMaps"),
    *("envSecrets", "envVars", "volumes", "volumeMounts", "labels", "failPodOnRunFailure", "resources"),
    *("schedulerName", "securityContext"),
)
S3_LOGS = (
    *("bucket", "localDir", "prefix", "useSsl", "verify", "verifyCertPath", "endpointUrl", "skipEmptyFiles"),
    *("uploadInterval", "uploadExtraArgs", "showUrlOnly", "region"),
)
DEPLOYMENT = ("name", "dagsterApiGrpcArgs", "codeServerArgs", "port", *SERVER)
MONITORING = ("enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts", "pollIntervalSeconds")
POSTGRES = ("enabled", "postgresqlHost", "postgresqlUsername", "postgresqlPassword", "postgresqlDatabase")

KEYS: dict[str, tuple[str, ...]] = {
    "": ("generatePostgresqlPasswordSecret",),
    "global": ("dagsterHome", "postgresqlSecretName", "serviceAccountName"),
    "postgresql": (*POSTGRES, "postgresqlParams", "postgresqlScheme"),
    "postgresql.service": ("port",),
    "dagsterWebserver": ("replicaCount", "nameOverride", "pathPrefix", "enableReadOnly", "logLevel", *SERVER),
    "dagsterWebserver.image": IMAGE,
    "dagsterWebserver.service": ("type", "port", "annotations"),
    "dagsterDaemon": ("enabled", "heartbeatTolerance", *SERVER),
    "dagsterDaemon.image": IMAGE,
    "dagsterDaemon.runCoordinator": ("enabled", "type", "config"),
    "dagsterDaemon.runMonitoring": (*MONITORING, "freeSlotsAfterRunEndSeconds"),
    "dagsterDaemon.runRetries": ("enabled", "maxRetries"),
    "dagster-user-deployments": ("enabled", "enableSubchart", "imagePullSecrets"),
    "dagster-user-deployments.deployments": DEPLOYMENT,
    "dagster-user-deployments.deployments.image": IMAGE,
    "dagster-user-deployments.deployments.includeConfigInLaunchedRuns": ("enabled",),
    "runLauncher": ("type",),
    "runLauncher.config.k8sRunLauncher": LAUNCHER,
    "runLauncher.config.k8sRunLauncher.runK8sConfig": RUN_POD,
    "computeLogManager": ("type",),
    "computeLogManager.config.s3ComputeLogManager": S3_LOGS,
    "telemetry": ("enabled",),
    "additionalInstanceConfig": ("*",),
}
OPEN = {*POD, "readinessProbe", "livenessProbe", "startupProbe", *RUN_POD}
"""Keys below which Kubernetes says what there is."""


def unknown(values: Mapping[str, Any], below: str = "") -> Iterator[str]:
    """Paths of keys that the chart does not have."""
    own = KEYS.get(below, ())
    for key, value in values.items():
        path = f"{below}.{key}".lstrip(".")
        deeper = [place for place in KEYS if place == path or place.startswith(f"{path}.")]
        if "*" in own or (key in own and (key in OPEN or not deeper)):
            continue
        if not deeper:
            yield path
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield from unknown(one, path)


def image(of: Mapping[str, Any]) -> str:
    """An image by its name."""
    return f"{of['repository']}:{of['tag']}"


def instance(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dagster.yaml that the chart writes."""
    daemon, postgres = values["dagsterDaemon"], values["postgresql"]
    assert daemon["runCoordinator"]["enabled"] is False, "the chart's coordinator would name limits of its own"
    monitoring, retries = daemon["runMonitoring"], daemon["runRetries"]
    storage = {
        "postgres_db": {
            "username": postgres["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": postgres["postgresqlHost"],
            "db_name": postgres["postgresqlDatabase"],
            "port": postgres["service"]["port"],
            "params": {},
            "scheme": postgres["postgresqlScheme"],
        }
    }
    logs = values["computeLogManager"]["config"]["s3ComputeLogManager"]
    return {
        "run_storage": _class("dagster_postgres.run_storage", "PostgresRunStorage", storage),
        "event_log_storage": _class("dagster_postgres.event_log", "PostgresEventLogStorage", storage),
        "schedule_storage": _class("dagster_postgres.schedule_storage", "PostgresScheduleStorage", storage),
        "run_launcher": _class("dagster_k8s", "K8sRunLauncher", launcher(values)),
        "compute_logs": _class("dagster_aws.s3.compute_log_manager", "S3ComputeLogManager", _snake(logs)),
        "run_monitoring": _snake(monitoring),
        "run_retries": _snake(retries),
        "telemetry": values["telemetry"],
        **values["additionalInstanceConfig"],
    }


def launcher(values: Mapping[str, Any]) -> dict[str, Any]:
    """The section of the run launcher."""
    own = dict(values["runLauncher"]["config"]["k8sRunLauncher"])
    run = own.pop("runK8sConfig")
    return {
        **_snake(own),
        "run_k8s_config": _snake(run),
        "job_namespace": "curation",
        "service_account_name": "curation-dagster",
        "dagster_home": {"env": "DAGSTER_HOME"},
        "instance_config_map": {"env": "DAGSTER_K8S_INSTANCE_CONFIG_MAP"},
        "postgres_password_secret": {"env": "DAGSTER_K8S_PG_PASSWORD_SECRET"},
        "env_config_maps": [{"env": "DAGSTER_K8S_PIPELINE_RUN_ENV_CONFIGMAP"}],
    }


def container_context(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """What launched runs take from the code server's deployment."""
    assert deployment["includeConfigInLaunchedRuns"]["enabled"]
    return {
        "k8s": {
            "image_pull_policy": deployment["image"]["pullPolicy"],
            "env_config_maps": [f"curation-{deployment['name']}-user-env"],
            "env_secrets": [secret["name"] for secret in deployment["envSecrets"]],
            "volume_mounts": deployment["volumeMounts"],
            "volumes": deployment["volumes"],
            "resources": deployment["resources"],
            "namespace": "curation",
            "service_account_name": "curation-user-deployments",
            "env": deployment["env"],
        }
    }


def deployments(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods of web server, daemon and code server, as far as values.yaml decides what is in them."""
    code = values["dagster-user-deployments"]["deployments"][0]
    ports = {"webserver": values["dagsterWebserver"]["service"]["port"], "code": code["port"]}
    for name, one in (("webserver", values["dagsterWebserver"]), ("daemon", values["dagsterDaemon"]), ("code", code)):
        container = {
            "name": "dagster",
            "image": image(one["image"]),
            "imagePullPolicy": one["image"]["pullPolicy"],
            "env": one.get("env", []),
            "envFrom": [{"secretRef": secret} for secret in one["envSecrets"]],
            "resources": one["resources"],
            "securityContext": one["securityContext"],
            "volumeMounts": one.get("volumeMounts", []),
            **({"ports": [{"containerPort": ports[name]}]} if name in ports else {}),
            **({"readinessProbe": one["readinessProbe"]} if "readinessProbe" in one else {}),
        }
        pod = {
            "containers": [container],
            "securityContext": one["podSecurityContext"],
            "volumes": one.get("volumes", []),
        }
        labels = {"component": name}
        template = {"metadata": {"labels": labels}, "spec": pod}
        yield {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"curation-{name}"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        }


def _class(module: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"module": module, "class": name, "config": dict(config)}


def _snake(section: Mapping[str, Any]) -> dict[str, Any]:
    """The first level of keys as dagster.yaml writes them."""
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): value for key, value in section.items()}
