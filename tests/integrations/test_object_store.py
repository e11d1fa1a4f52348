"""Images and parts in an object store, over HTTP."""

import numpy as np
import pytest
from support.commands import run
from support.originals import FAMILIES
from support.photos import READABLE, draw, make_photos

from hf_clip.embedding.parts import iter_parts
from hf_clip.utils.places import place_at

pytestmark = pytest.mark.integration
moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def endpoint():
    """A server that speaks as S3 does."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """A bucket, with credentials."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    fs = place_at("s3://photos").fs
    fs.mkdir("photos")
    yield "s3://photos"
    fs.rm("photos", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def held(output: str) -> dict[str, np.ndarray]:
    return {
        path: row
        for columns, rows in iter_parts(place_at(output))
        for path, row in zip(columns["path"].to_pylist(), rows, strict=True)
    }


def test_a_bucket_gives_what_a_folder_gives_and_resumes(bucket, repositories, tmp_path, capsys):
    photos = make_photos(tmp_path / "photos")
    fs = place_at(bucket).fs
    for name in READABLE:
        fs.put_file(str(photos / name), f"photos/in/{name}")
    options = ["-m", repositories[FAMILIES[0]], "--batch-size", 2, "--part-rows", 2]
    assert run("embed", f"{bucket}/in", "-o", f"{bucket}/out", *options) == 0
    assert run("embed", photos, "-o", tmp_path / "emb", *options) == 0
    remote, local = held(f"{bucket}/out"), held(str(tmp_path / "emb"))
    assert sorted(remote) == sorted(local) == sorted(READABLE)
    assert all(np.allclose(remote[path], local[path], atol=1e-6) for path in local)
    capsys.readouterr()
    assert run("embed", f"{bucket}/in", "-o", f"{bucket}/out", *options) == 0
    assert "0 new embeddings" in capsys.readouterr().out
    draw(photos / "0.png", 30)
    fs.put_file(str(photos / "0.png"), "photos/in/0.png")
    fs.invalidate_cache()
    assert run("embed", f"{bucket}/in", "-o", f"{bucket}/out", *options) == 0
    assert "1 new embeddings" in capsys.readouterr().out


def test_missing_credentials_are_one_sentence(endpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    (tmp_path / "photos").mkdir()
    draw(tmp_path / "photos/0.png", 0)
    for source, output in (("s3://photos/in", tmp_path / "emb"), (tmp_path / "photos", "s3://photos/out")):
        assert run("embed", source, "-o", output, "-m", "nowhere") == 1
        err = capsys.readouterr().err
        assert err.startswith("error: cannot reach s3://photos/")
        assert err.count("\n") == 1
        assert err.endswith("check its address and your credentials\n")
    s3fs.S3FileSystem.clear_instance_cache()
