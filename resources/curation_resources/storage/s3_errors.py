"""What errors of S3 mean to those who ask for files, and how to mend them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curation_resources.storage.files import AccessRefusedError, FileChangedError, StorageError

NOT_THERE = frozenset({"404", "NoSuchKey", "NotFound"})
REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
UNCHANGED = frozenset({"NotModified", "304"})
NO_ACCESS = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"})


def code_of(error: Any) -> str:
    """The code of a botocore ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))


def broken_off() -> tuple[type[Exception], ...]:
    """Return the exceptions of a stream that ends before its object does."""
    from botocore.exceptions import (  # type: ignore[import-untyped]  # noqa: PLC0415
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    return IncompleteReadError, ReadTimeoutError, ResponseStreamingError


@contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Errors of S3 as what they mean, with the mend.

    Raises:
        FileNotFoundError: there is no such object.
        FileChangedError: the object is not the one that a condition names.
        AccessRefusedError: S3 refuses it.
        StorageError: S3 cannot be used.
    """
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        ClientError,
        NoCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        code = code_of(error)
        if code in NOT_THERE:
            raise FileNotFoundError(what) from error
        if code in REFUSED:
            raise FileChangedError(f"{what}: changed while it was read") from error
        if code in NO_ACCESS:
            raise AccessRefusedError(
                f"{what}: S3 refuses access ({code}): check credentials and the bucket's policy"
            ) from error
        if code == "NoSuchBucket":
            raise StorageError(f"{what}: there is no such bucket: create it, or correct the address") from error
        raise StorageError(f"{what}: S3 failed after several attempts ({code}): {error}") from error
    except NoCredentialsError as error:
        raise StorageError(
            f"{what}: no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in "
            "s3.profile"
        ) from error
    except BotoCoreError as error:
        raise StorageError(f"{what}: S3 cannot be reached ({error}): check s3.endpoint_url and the network") from error
