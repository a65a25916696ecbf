"""How Polars reaches S3: with the endpoint, region and credentials of a boto3 client."""

from __future__ import annotations

import time
from typing import Any


def polars_access(client: Any, own_endpoint: bool, max_attempts: int) -> dict[str, Any]:
    """Arguments of Polars' scans.

    Args:
        client: of boto3.
        own_endpoint: whether the configuration names an endpoint.
        max_attempts: tries of a request.
    """
    options: dict[str, Any] = {"aws_region": client.meta.region_name or "us-east-1", "max_retries": max_attempts}
    endpoint = client.meta.endpoint_url
    if own_endpoint or not endpoint.endswith(".amazonaws.com"):
        options |= {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}

    def credentials() -> tuple[dict[str, str], int | None]:
        """Return credentials and their expiry for Polars, which asks again when they expire."""
        # boto3 renews credentials of roles by itself when they are asked for.
        frozen = client._request_signer._credentials.get_frozen_credentials()
        found = {"aws_access_key_id": frozen.access_key, "aws_secret_access_key": frozen.secret_key}
        if frozen.token:
            found["aws_session_token"] = frozen.token
        return found, int(time.time()) + 300

    return {"storage_options": options, "credential_provider": credentials}
