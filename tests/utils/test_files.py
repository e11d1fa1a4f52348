import os

import pytest

from hf_clip.utils.files import new_directory, replacing


def write(path, mark, text, error=None):
    with replacing(path, mark) as work:
        assert work.name == f".features.npy.{mark or os.getpid()}"
        work.write_text(text)
        if error:
            raise error


@pytest.mark.parametrize("mark", ["", "new"])
def test_whole_or_not_at_all(tmp_path, mark):
    path = tmp_path / "features.npy"
    for text in ("old", "newer"):
        write(path, mark, text)
        with pytest.raises(KeyboardInterrupt):
            write(path, mark, "half", KeyboardInterrupt())
        assert path.read_text() == text
        assert list(tmp_path.iterdir()) == [path]


def test_a_new_directory_shares_its_folders_too(tmp_path):
    with new_directory(tmp_path / "out") as work:
        (work / "inner").mkdir(0o700)
        (work / "inner" / "file").touch(0o600)
    assert (tmp_path / "out" / "inner" / "file").stat().st_mode & 0o044
    assert (tmp_path / "out" / "inner").stat().st_mode & 0o111 == 0o111
