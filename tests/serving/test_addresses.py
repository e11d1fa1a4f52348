"""Downloads of images: from allowed hosts at public addresses alone."""

import socket

import pytest
from support.requests import image_file
from support.served import serving

from hf_clip.data.requests import RequestError
from hf_clip.serving import addresses
from hf_clip.serving.addresses import check_host, fetch_image, is_public


@pytest.mark.parametrize(
    ("address", "hosts", "problem"),
    [
        ("https://example.com/a.png", ["example.com"], None),
        ("HTTPS://EXAMPLE.com:8443/a.png", ["Example.com"], None),
        ("https://example.com./a.png", ["example.com"], None),
        ("http://a.b.example.com/", ["*.example.com"], None),
        ("http://example.com/", ["*.example.com"], "images of example.com are not downloaded"),
        ("http://badexample.com/", ["*.example.com"], "images of badexample.com are not downloaded"),
        ("http://example.com@evil.org/", ["example.com"], "images of evil.org"),
        ("http://evil.org/?example.com", ["example.com"], "images of evil.org"),
        ("http://example.com/", [], "images are not downloaded by this server"),
        ("file:///etc/passwd", ["example.com"], "a data: URI, base64, or an http address"),
        ("ftp://example.com/", ["example.com"], "an http address"),
        ("http://[::1", ["example.com"], "not valid"),
    ],
)
def test_hosts_are_named(address, hosts, problem):
    if problem is None:
        check_host(address, hosts)
    else:
        with pytest.raises(RequestError, match=problem):
            check_host(address, hosts)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("192.168.0.1", False), ("172.16.0.1", False), ("169.254.169.254", False), ("0.0.0.0", False),
        ("100.64.0.1", False), ("::1", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:93.184.215.14", True), ("224.0.0.1", False),
    ],
)  # fmt: skip
def test_private_addresses_are_known(address, public):
    assert is_public(address) == public


@pytest.mark.parametrize("address", ["http://localhost:1/a.png", "http://127.0.0.1:1/a.png", "http://2130706433:1/"])
def test_an_allowed_name_at_a_private_address_is_refused(address):
    host = address.split("/")[2].split(":")[0]
    with pytest.raises(RequestError, match=f"{host} is at a private address"):
        fetch_image(address, [host])


def test_one_private_address_among_public_ones_is_refused(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RequestError, match="is at a private address"):
        fetch_image("http://example.com/", ["example.com"])


def test_what_is_allowed_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(image_file())
    monkeypatch.setattr(addresses, "is_public", lambda _: True)
    monkeypatch.setattr(addresses, "MAX_UPLOAD_BYTES", 100_000)
    (tmp_path / "large.png").write_bytes(bytes(200_000))
    with serving(tmp_path) as address:
        assert fetch_image(f"{address}/a.png", ["127.0.0.1"]) == image_file()
        for name, problem in (("none.png", "404"), ("large.png", "it has over 0 MB")):
            with pytest.raises(RequestError, match=problem):
                fetch_image(f"{address}/{name}", ["127.0.0.1"])


def test_redirects_lead_to_allowed_hosts_and_public_addresses_only(tmp_path, monkeypatch):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header(
                "Location", {"/other": "http://elsewhere.test/", "/private": "http://localhost:1/"}[self.path]
            )
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    known = is_public
    # the server of this test counts as public, all others do not
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1" or known(address))
    resolve = socket.getaddrinfo
    fake = {"localhost": "10.0.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve(fake.get(host, host), *rest, **named)
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(RequestError, match=r"images of elsewhere\.test are not downloaded"):
            fetch_image(f"{address}/other", ["127.0.0.1", "localhost"])
        with pytest.raises(RequestError, match="localhost is at a private address"):
            fetch_image(f"{address}/private", ["127.0.0.1", "localhost"])
        server.shutdown()
