"""The door to what lies elsewhere; `obstore`, which speaks to S3, Google, Azure and web servers, is imported only here.

Credentials come from the environment, as each cloud's own programs find them, and are never asked for, kept or shown:
what an error says is one line, without queries of addresses, in which Azure's signatures stand.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

from service.errors import RemoteFailed, RepositoryError, StartupError
from service.remote.address import RemoteAddress

_log = logging.getLogger(__name__)

_REQUEST_S = 60
"""For one request with its answer: a part of a file, a listing's page."""
_WHOLE_FILE_S = 3600
"""For a whole file, of a server that does not send parts of one."""
_CONNECT_S = 10
_RETRIES = 2
"""Of one request, by obstore itself; whoever asks may come back with another."""
_LONGEST_REASON = 300
_TIMES = re.compile(r" in [0-9.]+[nµm]?s(, after [0-9]+ retries, max_retries: [0-9]+, retry_timeout: \w+)?")
_CAUSE = re.compile(r'(?:message|error): "([A-Za-z0-9 :]+)"|(InvalidCertificate\(\s*\w+)')
"""Why nothing could be sent, in what the library prints for its makers."""


class RangesUnsupported(RemoteFailed):
    """The server sends whole files only."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What is known of a file without reading it; equal as long as the file is the same."""

    path: str
    """From the address of its store on."""
    size_bytes: int
    tag: str
    """The store's mark of the content or, where it gives none, the time of the last change."""


def require_obstore(what: str) -> ModuleType:
    """Return the library; raises StartupError that names `what` wants it where it is not installed."""
    try:
        import obstore
    except ModuleNotFoundError as error:
        raise StartupError(
            f"{what}: {error.name} is not installed; requirements/remote.txt has what models from elsewhere need"
        ) from error
    return obstore


class RemoteStore:
    """The files below an address; every method raises RemoteFailed where that cannot be asked, or breaks off.

    Those that must find a file raise RepositoryError where there is none.
    """

    def __init__(self, address: RemoteAddress) -> None:
        self._address = address
        self._obstore = require_obstore(str(address))
        self._parts = self._opened(_REQUEST_S)

    def __str__(self) -> str:
        return str(self._address)

    def list(self) -> Iterator[RemoteFile]:
        """Yield every file that there is."""
        try:
            for page in self._obstore.list(self._parts):
                yield from map(_file, page)
        except Exception as error:
            raise self._failed(error) from None

    def head(self, path: str) -> RemoteFile | None:
        """Return what is known of a file; None where there is none."""
        try:
            return _file(self._obstore.head(self._parts, path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error, path) from None

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        """Return a small file, None where there is none; raises RemoteFailed too where it is larger."""
        content = bytearray()
        try:
            for part in self._obstore.get(self._parts, path).stream():
                content += part
                if len(content) > max_bytes:
                    break
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error, path) from None
        if len(content) > max_bytes:
            raise RemoteFailed(f"{self._address}/{path} has more than {max_bytes} bytes")
        return bytes(content)

    def read_part(self, path: str, *, start: int, length: int) -> bytes:
        """Return `length` bytes of a file, or what it has of them; raises RangesUnsupported too."""
        try:
            return bytes(self._obstore.get_range(self._parts, path, start=start, length=length))
        except self._obstore.exceptions.NotSupportedError:
            raise RangesUnsupported(f"{self._address} sends no parts of files") from None
        except Exception as error:
            raise self._failed(error, path) from None

    def read_whole(self, path: str) -> Iterator[bytes]:
        """Yield a file from its beginning."""
        try:
            for part in self._obstore.get(self._opened(_WHOLE_FILE_S), path).stream():
                yield bytes(part)
        except Exception as error:
            raise self._failed(error, path) from None

    def _opened(self, timeout_s: int) -> Any:
        from obstore.store import from_url

        try:
            return from_url(
                str(self._address),
                client_options={
                    # Of a bucket only an endpoint can be without TLS, which the environment has named.
                    "allow_http": self._address.is_bucket or self._address.is_plain,
                    "timeout": timedelta(seconds=timeout_s),
                    "connect_timeout": timedelta(seconds=_CONNECT_S),
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_REQUEST_S)},
            )
        except Exception as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception, path: str = "") -> RepositoryError:
        """Return what is to be raised: RemoteFailed, unless the store has answered that there is no such file."""
        kind = RepositoryError if isinstance(error, FileNotFoundError) else RemoteFailed
        return kind(f"{self._address}{path and '/'}{path} cannot be read: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """Return what an error of the library says, as one line without what could be a secret."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    text, _, innermost = str(error).partition("\n\nDebug source")
    text, _, body = text.partition("Server returned non-2xx status code: ")
    if body:
        status = re.match(r"[0-9]{3}[A-Za-z ]*", body)
        code = re.search(r"<Code>([A-Za-z]+)</Code>", body)
        text = f"{text}{status[0].strip() if status else 'no success'}{f' ({code[1]})' if code else ''}"
    text = re.sub(r"\?[^\s)\"']*", "", " ".join(text.split()))
    text = _TIMES.sub("", text)  # else the same trouble would read otherwise each time
    cause = _CAUSE.search(innermost)
    return text[:_LONGEST_REASON] + (f" ({cause[1] or 'the certificate: ' + cause[2].split()[-1]})" if cause else "")


def _file(meta: Any) -> RemoteFile:
    return RemoteFile(meta["path"], int(meta["size"]), str(meta["e_tag"] or meta["last_modified"]))
