"""Make the bucket that compose.yaml's services work in, if it is not there: the step `bucket`."""

from __future__ import annotations

import os

import boto3
from botocore.exceptions import ClientError

THERE = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def main() -> None:
    """Make the bucket that CURATION_BUCKET names, where AWS_ENDPOINT_URL says."""
    name = os.environ["CURATION_BUCKET"]
    try:
        boto3.client("s3").create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in THERE:
            raise
    print(f"the bucket {name} is there")


if __name__ == "__main__":
    main()
