"""Storage access from Dagster's resource for S3, for code locations that configure AWS there.

@dg.definitions
def defs():
    options = storage_options(S3Resource(profile_name="curation"))
    return build_definitions(Workspace.load(storage_options=options))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from curation_resources.errors import UserError
from curation_resources.storage.aws import AwsKeys
from curation_resources.storage.object_store import ObjectStoreOptions

if TYPE_CHECKING:
    from dagster_aws.s3 import S3Resource


def storage_options(resource: S3Resource) -> ObjectStoreOptions:
    """Return the options that reach S3 as a resource does; they replace the section `s3` of curation.yaml.

    Raises:
        UserError: the resource has a setting that storage does not support.
    """
    given = resource.process_config_and_initialize()
    if given.use_unsigned_session or not given.use_ssl or given.verify is not None:
        raise UserError(
            "the S3Resource sets use_unsigned_session, use_ssl or verify, which storage does not support. Remove them; "
            "an endpoint_url with http:// is reached without TLS."
        )
    keys = None
    if given.aws_access_key_id is not None and given.aws_secret_access_key is not None:
        keys = AwsKeys(given.aws_access_key_id, given.aws_secret_access_key, given.aws_session_token)
    return ObjectStoreOptions(given.endpoint_url, given.region_name, given.profile_name, given.max_attempts, keys)
