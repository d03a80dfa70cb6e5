"""An archive writes below its folder or nowhere."""

import io
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest

from harness.data import archives
from harness.data.archives import unpack


def zipped(path, *members: tuple[str, bytes], mode: int | None = None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            if mode is not None:
                info.external_attr = mode << 16
            opened.writestr(info, content)
    return path


def tarred(path, *infos: tuple[tarfile.TarInfo, bytes]):
    with tarfile.open(path, "w:gz") as opened:
        for info, content in infos:
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def test_zip_and_tar_come_out_whole(tmp_path):
    unpack(
        zipped(tmp_path / "a.zip", ("d/", b""), ("d/x", b"1"), ("y", b"2")), tmp_path / "z", progress=False
    )
    unpack(tarred(tmp_path / "a.tgz", (tarfile.TarInfo("d/x"), b"1")), tmp_path / "t", progress=False)
    assert (tmp_path / "z" / "d" / "x").read_bytes() == b"1" == (tmp_path / "t" / "d" / "x").read_bytes()
    assert (tmp_path / "z" / "y").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, name, kind):
    if kind == "zip":
        path = zipped(tmp_path / "a.zip", ("good", b"1"), (name, b"2"))
    else:
        path = tarred(tmp_path / "a.tar.gz", (tarfile.TarInfo("good"), b"1"), (tarfile.TarInfo(name), b"2"))
    with pytest.raises(ValueError, match="outside its folder"):
        unpack(path, tmp_path / "deep" / "out", progress=False)
    assert not any(p.is_file() for p in tmp_path.rglob("*") if p != path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="link or device"):
        unpack(tarred(tmp_path / "a.tgz", (info, b"")), tmp_path / "out", progress=False)
    path = zipped(tmp_path / "a.zip", ("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)
    with pytest.raises(ValueError, match="link or device"):
        unpack(path, tmp_path / "out", progress=False)


def test_a_link_that_was_there_before_leads_nowhere(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="outside its folder"):
        unpack(zipped(tmp_path / "a.zip", ("d/x", b"1")), tmp_path / "out", progress=False)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_for_one_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        unpack(zipped(tmp_path / "a.zip", ("x", b"1"), ("./x", b"2")), tmp_path / "out", progress=False)


def test_more_than_the_disk_holds_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(ValueError, match="free some space"):
        unpack(zipped(tmp_path / "a.zip", ("x", b"1")), tmp_path / "out", progress=False)


def test_a_cut_or_damaged_archive_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ("x", b"1" * 5000))
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(ValueError, match="no whole archive"):
        unpack(path, tmp_path / "out", progress=False)
    damaged = bytearray(data)
    damaged[40] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="no whole archive"):
        unpack(path, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "x").exists()


def test_unpacking_goes_on_and_mends_what_is_wrong(tmp_path):
    path = zipped(tmp_path / "a.zip", ("x", b"1111"), ("y", b"2222"), ("z", b"3333"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "x").write_bytes(b"1111")
    (out / "y").write_bytes(b"2232")
    kept = (out / "x").stat().st_ino
    unpack(path, out, progress=False)
    assert [(out / n).read_bytes() for n in "xyz"] == [b"1111", b"2222", b"3333"]
    assert (out / "x").stat().st_ino == kept
