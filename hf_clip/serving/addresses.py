"""Images at addresses: from hosts that the operator allowed, and never from a private network."""

import ipaddress
import socket
from collections.abc import Collection
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
)

from ..data.requests import MAX_UPLOAD_BYTES, RequestError
from ..model.image_reading_hf_clip import download_image
from ..utils.text import first_line


def fetch_image(address: str, hosts: Collection[str]) -> bytes:
    """Download an image from one of `hosts`.

    Redirects lead to these hosts only. A name is resolved once, and the connection goes to the address that was
    checked, so a name that changes its address between two look-ups gains nothing. Proxies are not used: they would
    resolve names themselves.

    Args:
        address: An http or https address.
        hosts: Names of hosts; `*.example.com` stands for all below example.com.

    Raises:
        RequestError: The host is not among `hosts`, or at a private address; or the download_image failed.
    """
    check_host(address, hosts)
    try:
        return download_image(address, _opener(hosts), MAX_UPLOAD_BYTES)
    except RequestError:
        raise
    except (OSError, ValueError, HTTPException) as error:
        # urllib wraps what a connection raises
        reason = getattr(error, "reason", None)
        refused = reason if isinstance(reason, RequestError) else None
        raise refused or RequestError(f"the image cannot be downloaded: {first_line(error)}") from error


def check_host(address: str, hosts: Collection[str]) -> None:
    """Raise RequestError unless the address is http or https and its host is among `hosts`."""
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").rstrip(".").lower()
    except ValueError:
        raise RequestError("the address of the image is not valid: write https://HOST/PATH") from None
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise RequestError("an image is a data: URI, base64, or an http address: send one of these")
    if not any(host == each.lower() or (each.startswith("*.") and host.endswith(each[1:].lower())) for each in hosts):
        raise RequestError(
            f"images of {host[:80]} are not downloaded: send the image itself, as base64"
            if hosts
            else "images are not downloaded by this server: send the image itself, as base64"
        )


def is_public(address: str) -> bool:
    """Return True for an IP address of the public internet."""
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(known, "ipv4_mapped", None)
    return (mapped or known).is_global and not (mapped or known).is_multicast


def _connect(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """Connect to a host at an address that was checked; raise RequestError if one of its addresses is private."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    if not all(is_public(str(each[4][0])) for each in found):
        raise RequestError(f"{address[0][:80]} is at a private address: images are downloaded from public ones only")
    failure: OSError = OSError("it has no address")
    for each in found:
        try:
            return socket.create_connection((str(each[4][0]), address[1]), timeout, source_address)
        except OSError as error:
            failure = error
    raise failure


class _PublicHTTPConnection(HTTPConnection):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _PublicHTTPSConnection(HTTPSConnection):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _PublicHTTPHandler(HTTPHandler):
    def http_open(self, req: Request) -> Any:
        return self.do_open(_PublicHTTPConnection, req)


class _PublicHTTPSHandler(HTTPSHandler):
    def https_open(self, req: Request) -> Any:
        return self.do_open(partial(_PublicHTTPSConnection, context=getattr(self, "_context", None)), req)


class _CheckedRedirects(HTTPRedirectHandler):
    def __init__(self, hosts: Collection[str]):
        self._hosts = hosts

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_host(newurl, self._hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(hosts: Collection[str]) -> OpenerDirector:
    opener = OpenerDirector()
    for handler in (
        _PublicHTTPHandler(),
        _PublicHTTPSHandler(),
        _CheckedRedirects(hosts),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


__all__ = ["check_host", "fetch_image", "is_public"]
