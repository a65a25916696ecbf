"""Access to S3: botocore finds credentials, region and endpoint; obstore and Polars use them.

Everything that needs boto3 (extra `s3`) is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from curation_resources.storage.files import StorageError

if TYPE_CHECKING:
    from obstore.store import S3Credential

DEFAULT_REGION = "us-east-1"
CREDENTIALS_TTL = timedelta(minutes=10)
"""Time for which clients may cache credentials. botocore renews temporary ones earlier before they expire."""


@dataclass(frozen=True)
class AwsKeys:
    """Keys that another part of the program obtained; they are used in place of those that botocore would find."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        """Return the access key's id only."""
        return f"AwsKeys({self.access_key_id!r})"


@dataclass(frozen=True)
class AwsAccess:
    """Everything that a client of S3 needs.

    Attributes:
        region: of the bucket.
        endpoint_url: of another service than AWS, or of a private endpoint; None: AWS.
        credentials: returns credentials and the time at which to ask for them again.
        session: of botocore.
    """

    region: str
    endpoint_url: str | None
    credentials: Callable[[], S3Credential]
    session: Any

    def polars_options(self, client: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of Polars' scans, with these options of its client."""
        options = {"aws_region": self.region, **client}
        if self.endpoint_url is not None:
            allow_http = str(self.endpoint_url.startswith("http://")).lower()
            options |= {"aws_endpoint_url": self.endpoint_url, "aws_allow_http": allow_http}
        return {"storage_options": options, "credential_provider": self._polars_credentials}

    def _polars_credentials(self) -> tuple[dict[str, str], int | None]:
        found = self.credentials()
        keys = {"aws_access_key_id": found["access_key_id"], "aws_secret_access_key": found["secret_access_key"]}
        if token := found.get("token"):
            keys["aws_session_token"] = token
        expires = found["expires_at"]
        return keys, None if expires is None else int(expires.timestamp())


def aws_access(
    place: str, endpoint_url: str | None, region: str | None, profile: str | None, keys: AwsKeys | None
) -> AwsAccess:
    """Find what is not given in the environment, the files of AWS, a role or SSO, as every AWS tool does.

    Args:
        place: address for messages.
        endpoint_url: see `AwsAccess`.
        region: see `AwsAccess`.
        profile: a named profile of the files of AWS.
        keys: used without looking for credentials.

    Raises:
        StorageError: boto3 is not installed, the profile does not exist, or there are no credentials.
    """
    try:
        import botocore.session  # type: ignore[import-untyped]
        from botocore.configprovider import (  # type: ignore[import-untyped]
            ConfiguredEndpointProvider,
        )
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StorageError(f"{place} needs boto3 ({error}). Run: pip install 'curation-assets[s3]'") from error
    try:
        session = botocore.session.Session(profile=profile)
        region = region or session.get_config_variable("region") or os.environ.get("AWS_REGION")
        configured = ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide()
        if keys is None:
            if session.get_credentials() is None:
                raise StorageError(
                    f"{place}: no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a "
                    "profile in s3.profile"
                )
            credentials: Callable[[], S3Credential] = Boto3CredentialProvider(session, ttl=CREDENTIALS_TTL)
        else:
            session.set_credentials(keys.access_key_id, keys.secret_access_key, keys.session_token)
            credentials = _fixed(keys)
    except BotoCoreError as error:
        raise StorageError(
            f"{place}: no credentials for S3 ({error}): check s3.profile and the files of AWS"
        ) from error
    return AwsAccess(region or DEFAULT_REGION, endpoint_url or configured, credentials, session)


def _fixed(keys: AwsKeys) -> Callable[[], S3Credential]:
    def credentials() -> S3Credential:
        return {
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            "token": keys.session_token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_TTL,
        }

    return credentials


def exact_listing(access: AwsAccess, bucket: str, prefix: str, delimiter: str, place: str) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing as S3 sends them, with keys that obstore refuses.

    Raises:
        StorageError: S3 cannot be used.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = access.session.create_client("s3", region_name=access.region, endpoint_url=access.endpoint_url)
        pages = client.get_paginator("list_objects_v2")
        yield from pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{place}: S3 failed after several attempts: {error}") from error
