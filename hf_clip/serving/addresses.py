"""Images at addresses: from hosts that the operator allowed, and never from a private network."""

import ipaddress
from collections.abc import Collection, Sequence
from functools import partial
from http.client import HTTPException
from urllib.parse import urlsplit

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
        RequestError: The host is not among `hosts`, or at a private address; or the download failed.
    """
    check_host(address, hosts)
    try:
        return download_image(address, MAX_UPLOAD_BYTES, partial(check_host, hosts=hosts), _check_public)
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


def _check_public(host: str, ips: Sequence[str]) -> None:
    """Raise RequestError if one of a host's IP addresses is private."""
    if not all(map(is_public, ips)):
        raise RequestError(f"{host[:80]} is at a private address: images are downloaded from public ones only")


__all__ = ["check_host", "fetch_image", "is_public"]
