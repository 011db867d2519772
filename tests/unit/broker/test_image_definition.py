"""An image's definition: what is refused and how it is said, and that the digest follows everything that matters."""

from pathlib import Path

import pytest

from hermes.broker import image_definition
from hermes.broker.image_definition import find, names
from hermes.errors import ImageError


def write(folder: Path, text: str = "suite: bookworm\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image.yaml").write_text(text)
    return folder


def test_the_default_image_is_found_and_right() -> None:
    definition = find("debian-12")
    assert definition.config.suite == "bookworm"
    assert {"openssh-server", "curl", "python3", "busybox"} <= set(definition.config.packages)
    assert definition.setup.is_file()
    assert "debian-12" in names()


def test_the_first_folder_wins(tmp_path: Path) -> None:
    write(tmp_path / "own" / "web", "suite: trixie\n")
    write(tmp_path / "shipped" / "web")
    write(tmp_path / "shipped" / "mail")
    search = [tmp_path / "own", tmp_path / "missing", tmp_path / "shipped"]
    assert find("web", search).config.suite == "trixie"
    assert names(search) == ["mail", "web"]


@pytest.mark.parametrize("name", ["nosuch", "../web", ".hidden", "a/b", ""])
def test_an_unknown_name_tells_the_known_ones(tmp_path: Path, name: str) -> None:
    write(tmp_path / "web")
    with pytest.raises(ImageError, match="known are: web"):
        find(name, [tmp_path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("suite: [\n", "not valid YAML"),
        ("- suite\n", "must be a mapping"),
        ("packages: [curl]\n", "suite: Field required"),
        ("suite: bookworm\ncolour: red\n", "colour: Extra inputs"),
        ("suite: bookworm\npackages: ['curl --force']\n", r"packages\.0"),
        ("suite: bookworm\npackages: ['-x']\n", r"packages\.0"),
        ("suite: bookworm\nmirror: 'http://a b'\n", "mirror"),
        ("suite: bookworm\nmirror: 'http://a [trusted=yes]'\n", "mirror"),
        ("suite: bookworm\ninit: [sh]\n", "absolute path"),
        ("suite: bookworm\ninit: []\n", "init"),
        ("suite: bookworm\nusers: [{name: 'A b'}]\n", r"users\.0\.name"),
        ("suite: bookworm\nusers: [{name: a, password: 'x:y'}]\n", r"users\.0\.password"),
        ("suite: bookworm\ntimezone: ../../etc/passwd\n", "timezone"),
        ("suite: bookworm\npermissions: {/a: {mode: '9'}}\n", "permissions"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "web", text)
    with pytest.raises(ImageError, match=said) as caught:
        find("web", [tmp_path])
    assert "image.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_digest_follows_settings_files_modes_links_and_setup(tmp_path: Path) -> None:
    folder = write(tmp_path / "web")
    seen = [find("web", [tmp_path]).digest]

    def changed() -> bool:
        seen.append(find("web", [tmp_path]).digest)
        return len(set(seen)) == len(seen)

    (folder / "files/etc").mkdir(parents=True)
    (folder / "files/etc/motd").write_text("hello\n")
    assert changed()
    (folder / "files/etc/motd").write_text("hullo\n")
    assert changed()
    (folder / "files/etc/motd").chmod(0o755)
    assert changed()
    (folder / "files/etc/link").symlink_to("motd")
    assert changed()
    (folder / "setup").write_text("#!/bin/sh\n")
    assert changed()
    write(folder, "suite: bookworm\npackages: [curl]\n")
    assert changed()
    write(folder, "# a remark\npackages: [curl]\nsuite: bookworm\n")
    assert find("web", [tmp_path]).digest == seen[-1], "only what is said matters, not how"


def test_a_new_builder_makes_new_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "web")
    before = find("web", [tmp_path]).digest
    monkeypatch.setattr(image_definition, "BUILDER", image_definition.BUILDER + 1)
    assert find("web", [tmp_path]).digest != before
