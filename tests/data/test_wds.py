import pytest
from huggingface_hub import constants
from support.data_sets import captioned_wds, labeled_wds, wds_folder
from support.local_hub import File, LocalHub, Repository

from hf_clip.data.rows import DataError
from hf_clip.data.wds import find_wds, read_wds


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    """Eleven of them: 10.tar comes after 9.tar."""
    samples = [{"png": b"", "cls": str(number % 3).encode(), "txt": f"text {number}".encode()} for number in range(11)]
    rows = read_wds(wds_folder(tmp_path, "many", samples, shards=11, classnames=["a", "b", "c"]))
    assert [row.texts[0] for row in rows] == [f"text {number}" for number in range(11)]
    assert [row.label for row in rows] == [number % 3 for number in range(11)]
    assert rows.labels == ["a", "b", "c"]


def test_names_templates_and_captions_come_along(tmp_path):
    rows = read_wds(labeled_wds(tmp_path))
    assert rows.labels == ["blue square", "red circle"]
    assert rows.templates == ["a photo of a {}.", "a {}"]
    assert rows[1].open().getpixel((0, 0)) == (230, 20, 20)
    assert read_wds(captioned_wds(tmp_path))[2].texts == ("the color 2", "number 2 of all")


def test_the_hub_s_copy_is_downloaded_at_a_revision_and_resumed(tmp_path, monkeypatch):
    folder = labeled_wds(tmp_path, shards=2)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files |= {"train/0.tar": b"not asked for"}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LocalHub() as hub:
        hub.use_in_process(monkeypatch)
        repository = hub.repositories["clip-benchmark/wds_vtab-colors"] = Repository(private=False)
        first = repository.add("main", "first", {path: File.of(content, lfs=True) for path, content in files.items()})
        repository.add("main", "second", {"classnames.txt": File.of(b"other")})
        hub.drop_download = 300
        found = find_wds("vtab/colors", revision=first.sha)
        assert [row.label for row in read_wds(found)] == [row.label for row in read_wds(folder)]
        assert found.name == first.sha
        assert not (found / "train").exists()
        with pytest.raises(DataError, match=r"cannot download clip-benchmark/wds_mnist .*: keep wds_mnist below"):
            find_wds("mnist")


def test_bad_input_is_refused_by_name(tmp_path):
    folder = labeled_wds(tmp_path, shards=2)
    assert find_wds("vtab/colors", root=tmp_path) == folder
    with pytest.raises(DataError, match=r"there is no .*wds_vtab-dtd.test"):
        find_wds("vtab/dtd", root=tmp_path)
    tar = folder / "test" / "1.tar"
    content = tar.read_bytes()
    for length in (700, 1024, len(content) - 10240):
        tar.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"1\.tar is (cut short|no uncompressed tar: unexpected end)"):
            read_wds(folder)
    tar.unlink()
    with pytest.raises(DataError, match=r"has 1 of 2 shards: 1\.tar is missing"):
        read_wds(folder)
    (folder / "test" / "nshards.txt").write_text("<html>")
    with pytest.raises(DataError, match=r"nshards\.txt holds no number"):
        read_wds(folder)
