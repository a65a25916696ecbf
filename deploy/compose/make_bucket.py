"""Create the bucket for the services of compose.yaml, if it does not exist (service `bucket`)."""

from __future__ import annotations

import os

import boto3
from botocore.exceptions import ClientError

THERE = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}


def main() -> None:
    """Create the bucket CURATION_BUCKET at AWS_ENDPOINT_URL, unless it exists."""
    name = os.environ["CURATION_BUCKET"]
    try:
        boto3.client("s3").create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in THERE:
            raise
    print(f"bucket {name} exists")


if __name__ == "__main__":
    main()
