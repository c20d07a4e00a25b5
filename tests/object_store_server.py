"""A server that answers as Google's object store does, with one bucket in memory.

    python tests/object_store_server.py PORT

That of `gcp_storage_emulator`, with the header by which tensorstore tells one version of an object
from another: without it, checkpoints fail now and then.
"""

import sys
import time
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.handlers import objects

BUCKET = "bucket"


def download(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    """An object's content, with its generation."""
    _download(request, response, storage, *args, **kwargs)
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        about = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = about["generation"]


_download, objects.download = objects.download, download

# It takes the handlers as they are when it is imported.
from gcp_storage_emulator import server  # noqa: E402

if __name__ == "__main__":
    server.create_server(
        "127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=BUCKET
    ).start()
    while True:
        time.sleep(3600)
