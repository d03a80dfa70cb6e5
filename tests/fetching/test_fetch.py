"""Raw data arrive whole or not at all, and half a file is never fetched twice."""

import hashlib
import io
import json
import random
import zipfile

import pytest

from harness.data.fetch import fetch
from harness.data.sources import EXPECTED, Source, find_sources, get_source


def archive(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, content in files.items():
            opened.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


NOISE = random.Random(0).randbytes(5_000_000)
ARCHIVE = archive(toy__refs=NOISE, toy__instances=b"{}")
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


def source(*urls: str, **file) -> Source:
    return Source.model_validate(
        {
            "title": "toy", "licence": "none", "holds": ["toy/refs"],
            "unpack": {"archive": "toy.zip", "into": "."},
            "files": [{"name": "toy.zip", "urls": urls, **file}],
        }
    )  # fmt: skip


class Said(list):
    def __call__(self, text):
        self.append(text)


def bring(root, wanted, **options) -> Said:
    said = Said()
    fetch("toy", root, source=wanted, say=said, progress=False, **options)
    return said


def test_a_file_is_fetched_checked_and_unpacked_once(mirror, tmp_path):
    mirror.files["toy.zip"] = ARCHIVE
    wanted = source(f"{mirror.url}/toy.zip", size=len(ARCHIVE), sha256=SHA256)
    bring(tmp_path, wanted)
    assert (tmp_path / "toy" / "refs").read_bytes() == NOISE
    (tmp_path / "toy" / "refs").touch()
    before = (tmp_path / "toy" / "refs").stat().st_mtime_ns
    bring(tmp_path, wanted)
    assert len(mirror.asked) == 1 and (tmp_path / "toy" / "refs").stat().st_mtime_ns == before


def test_a_broken_download_goes_on_where_it_ended(mirror, tmp_path):
    mirror.files["toy.zip"] = ARCHIVE
    mirror.break_after = [3_000_000, 500_000]
    wanted = source(f"{mirror.url}/toy.zip", sha256=SHA256)
    with pytest.raises(ValueError, match="half a file is kept"):
        bring(tmp_path, wanted, retries=0)
    kept = (tmp_path / "archives" / "toy.zip.part").stat().st_size
    assert 2_900_000 < kept <= 3_000_000
    bring(tmp_path, wanted, retries=1)
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0 for _, asked in mirror.asked]
    assert starts[:2] == [0, kept] and kept + 400_000 < starts[2] <= kept + 500_000
    assert (tmp_path / "toy" / "refs").read_bytes() == NOISE


def test_a_server_without_ranges_is_read_from_the_start(mirror, tmp_path):
    mirror.files["toy.zip"], mirror.ranges, mirror.break_after = ARCHIVE, False, [1_000_000]
    bring(tmp_path, source(f"{mirror.url}/toy.zip", sha256=SHA256), retries=1)
    assert (tmp_path / "toy" / "refs").read_bytes() == NOISE


def test_the_next_mirror_is_tried(mirror, tmp_path):
    mirror.files |= {"good": ARCHIVE, "bad": b"<html>not found</html>"}
    urls = [f"{mirror.url}/{name}" for name in ("gone", "bad", "good")]
    bring(tmp_path, source(*urls, sha256=SHA256), retries=0)
    assert [path for path, _ in mirror.asked] == ["/gone", "/bad", "/good"]


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"size": 17}])
def test_another_file_than_the_manifests_is_refused(mirror, tmp_path, known):
    mirror.files["toy.zip"] = ARCHIVE
    with pytest.raises(ValueError, match="no mirror gave toy.zip"):
        bring(tmp_path, source(f"{mirror.url}/toy.zip", **known))
    assert not (tmp_path / "toy").exists() and not (tmp_path / "archives" / "toy.zip").exists()


def test_an_unknown_checksum_is_recorded_said_and_held_to(mirror, tmp_path):
    mirror.files["toy.zip"] = ARCHIVE
    wanted = source(f"{mirror.url}/toy.zip")
    said = bring(tmp_path, wanted)
    assert any(SHA256 in text and "recorded" in text for text in said)
    ledger = json.loads((tmp_path / "archives" / "checksums.json").read_text())
    assert ledger["toy.zip"] == {"sha256": SHA256, "from": f"{mirror.url}/toy.zip"}
    (tmp_path / "archives" / "toy.zip").write_bytes(archive(toy__refs=b"other"))
    with pytest.raises(ValueError, match="another sha256"):
        bring(tmp_path, wanted)
    (tmp_path / "archives" / "toy.zip").unlink()
    (tmp_path / "toy" / "refs").unlink()
    mirror.files["toy.zip"] = archive(toy__refs=b"other")
    with pytest.raises(ValueError, match="no mirror gave"):
        bring(tmp_path, wanted)


def test_a_file_put_there_by_hand_needs_no_mirror(tmp_path):
    wanted = source(sha256=SHA256)
    with pytest.raises(ValueError, match="no mirror.*by hand"):
        bring(tmp_path, wanted)
    (tmp_path / "archives" / "toy.zip").write_bytes(ARCHIVE)
    bring(tmp_path, wanted)
    assert (tmp_path / "toy" / "refs").read_bytes() == NOISE


def test_a_deleted_archive_is_not_fetched_again_while_its_files_are_there(tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "toy.zip").write_bytes(ARCHIVE)
    bring(tmp_path, source(sha256=SHA256))
    (tmp_path / "archives" / "toy.zip").unlink()
    bring(tmp_path, source(sha256=SHA256))
    (tmp_path / "toy" / "instances").unlink()
    with pytest.raises(ValueError, match="no mirror"):
        bring(tmp_path, source(sha256=SHA256))


def test_half_a_file_that_grew_whole_is_checked_not_fetched(mirror, tmp_path):
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "toy.zip.part").write_bytes(ARCHIVE)
    bring(tmp_path, source(f"{mirror.url}/toy.zip", size=len(ARCHIVE), sha256=SHA256))
    assert mirror.asked == [] and (tmp_path / "toy" / "refs").is_file()


def test_the_manifest_names_archived_copies_and_every_expected_dataset():
    sources = find_sources()
    for name in ("refcoco", "refcoco+", "refcocog"):
        (file,) = sources[name].files
        assert file.sha256 and file.size and all("web.archive.org" in url for url in file.urls)
    assert {dataset for dataset, _, _ in EXPECTED} <= set(sources)
    with pytest.raises(ValueError, match="did you mean 'grefcoco'"):
        get_source("gref_coco")
