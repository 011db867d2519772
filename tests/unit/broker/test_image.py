"""The store of built images, on images that were never Debian: small trees with a manifest."""

import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hermes.broker import image
from hermes.broker.image import Image, Manifest
from hermes.broker.image_definition import Definition, find
from hermes.errors import ImageError


@pytest.fixture
def definition(tmp_path: Path) -> Definition:
    folder = tmp_path / "definitions" / "web"
    folder.mkdir(parents=True)
    (folder / "image.yaml").write_text("suite: bookworm\ninit: [/sbin/init, -q]\ndescription: a web server\n")
    return find("web", [folder.parent])


def store(definition: Definition, data_dir: Path, digest: str | None = None) -> Path:
    """Put a built image there, as `build` leaves it."""
    digest = digest or definition.digest
    folder = data_dir / "images" / f"{definition.name}-{digest[:12]}"
    (folder / "rootfs/sbin").mkdir(parents=True)
    (folder / "rootfs/sbin/init").symlink_to("/lib/sysvinit/init")
    (folder / "rootfs/etc").mkdir()
    (folder / "templates/etc").mkdir(parents=True)
    for place in (folder / "rootfs/etc/hostname", folder / "templates/etc/hostname"):
        place.write_text("@HOSTNAME@\n")
        place.chmod(0o640)
    manifest = Manifest(name="web", digest=digest, suite="bookworm", built=datetime.now(UTC), size=4096, packages={"curl": "8"})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def get(definition: Definition, data_dir: Path) -> Image:
    return image.get(definition.name, data_dir, definition=definition)


def test_a_stored_image_is_got(definition: Definition, tmp_path: Path) -> None:
    folder = store(definition, tmp_path)
    found = get(definition, tmp_path)
    assert (found.rootfs, found.init, found.hostname) == (folder / "rootfs", ("/sbin/init", "-q"), "")
    assert image.docker_tag(found) == f"hermes/web:{definition.digest[:12]}"


def test_what_is_not_whole_is_not_an_image(definition: Definition, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="web is not built; run `hermes image build web`"):
        get(definition, tmp_path)
    folder = store(definition, tmp_path)
    manifest = (folder / "manifest.json").read_text()
    for wrong in ("", "{}", manifest.replace(definition.digest, "0" * 64)):
        (folder / "manifest.json").write_text(wrong)
        with pytest.raises(ImageError, match="damaged"):
            get(definition, tmp_path)
    (folder / "manifest.json").write_text(manifest)
    (folder / "rootfs/sbin/init").unlink()
    with pytest.raises(ImageError, match="damaged"):
        get(definition, tmp_path)


def test_an_image_of_an_older_definition_is_told_apart(definition: Definition, tmp_path: Path) -> None:
    store(definition, tmp_path, "1" * 64)
    with pytest.raises(ImageError, match="older definition"):
        get(definition, tmp_path)


def test_the_host_name_is_written_with_owner_mode_and_times_kept(definition: Definition, tmp_path: Path) -> None:
    folder = store(definition, tmp_path)
    before = (folder / "templates/etc/hostname").stat()
    parent = (folder / "rootfs/etc").stat()
    for name in ("srv01", "mail-2"):
        named = image.set_hostname(get(definition, tmp_path), name)
        assert (folder / "rootfs/etc/hostname").read_text() == f"{name}\n"
        assert named.hostname == get(definition, tmp_path).hostname == name
        assert image.docker_tag(named).endswith(f"-{name}")
        after = (folder / "rootfs/etc/hostname").stat()
        assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
        assert (folder / "rootfs/etc").stat().st_mtime_ns == parent.st_mtime_ns
        assert [path.name for path in (folder / "rootfs/etc").iterdir()] == ["hostname"]


def test_a_host_name_half_written_is_written_again(
    definition: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store(definition, tmp_path)
    image.set_hostname(get(definition, tmp_path), "srv01")
    with monkeypatch.context() as patch:
        patch.setattr(image, "_copy_status", _full)
        with pytest.raises(ImageError, match="host name cannot be written"):
            image.set_hostname(get(definition, tmp_path), "srv02")
    again = get(definition, tmp_path)
    assert again.hostname == ""
    image.set_hostname(again, "srv01")
    assert (folder / "rootfs/etc/hostname").read_text() == "srv01\n"


def _full(source: Path, target: Path) -> None:
    raise OSError(28, "No space left on device")


def test_the_archive_holds_the_tree(definition: Definition, tmp_path: Path) -> None:
    store(definition, tmp_path)
    with image.open_archive(get(definition, tmp_path)) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        members = {member.name: member for member in archive}
    assert {"./etc/hostname", "./sbin/init"} <= set(members)
    assert members["./etc/hostname"].mode == 0o640
    assert members["./sbin/init"].linkname == "/lib/sysvinit/init"


def test_an_archive_may_be_left_early_but_not_end_early(definition: Definition, tmp_path: Path) -> None:
    folder = store(definition, tmp_path)
    (folder / "rootfs/large").write_bytes(bytes(4 * 1024 * 1024))
    with image.open_archive(get(definition, tmp_path)) as stream:
        assert stream.read(10)
    found = get(definition, tmp_path)
    folder.rename(tmp_path / "gone")
    with pytest.raises(ImageError, match="could not be read whole"), image.open_archive(found) as stream:
        stream.read()


def test_a_held_image_is_not_free(definition: Definition, tmp_path: Path) -> None:
    folder = store(definition, tmp_path)
    found = get(definition, tmp_path)
    assert image._is_free(folder)
    with image.hold(found), image.hold(found):
        assert not image._is_free(folder)
    assert image._is_free(folder)


def test_list_shows_what_can_be_built_and_what_is_out_of_date(
    definition: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermes.broker.image_definition.folders", lambda: [definition.folder.parent])
    broken = definition.folder.parent / "broken"
    broken.mkdir()
    (broken / "image.yaml").write_text("suite: 7\n")
    store(definition, tmp_path, "1" * 64)
    first, second, third = image.list_images(tmp_path)
    assert (first.name, first.manifest, first.current) == ("broken", None, False)
    assert (second.name, second.manifest, second.current, second.description) == ("web", None, True, "a web server")
    assert third.manifest is not None
    assert (third.name, third.current, third.digest) == ("web", False, "1" * 64)
    store(definition, tmp_path)
    assert [entry.manifest is not None for entry in image.list_images(tmp_path)] == [False, True, True]


def test_only_root_builds(definition: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ImageError, match="only root"):
        image.build(definition, tmp_path, lambda step: None)


def test_a_full_disk_is_found_before_the_work(definition: Definition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(image, "_NEEDED", 1 << 60)
    with pytest.raises(ImageError, match="MB are free under"):
        image.build(definition, tmp_path, lambda step: None)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [".lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root builds images")
def test_images_are_kept_only_where_root_alone_can_put_them(tmp_path: Path) -> None:
    data_dir, target = tmp_path / "data", tmp_path / "target"
    data_dir.mkdir()
    assert image._home(data_dir).stat().st_mode & 0o7777 == 0o700
    os.chown(data_dir / "images", 65534, 65534)
    with pytest.raises(ImageError, match="images is not root's"):
        image._home(data_dir)
    (data_dir / "images").rmdir()
    target.mkdir()
    (data_dir / "images").symlink_to(target)
    assert image._home(data_dir) == data_dir / "images"
    data_dir.chmod(0o777)
    with pytest.raises(ImageError, match="images is a link, and others than root can change"):
        image._home(data_dir)
    data_dir.chmod(0o755)
    os.chown(target, 65534, 65534)
    with pytest.raises(ImageError, match="images is not root's"):
        image._home(data_dir)
