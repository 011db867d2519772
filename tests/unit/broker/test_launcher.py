"""What the launcher names things."""

from pathlib import Path

from hermes.broker import launcher


def test_the_instance_is_the_directorys_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    assert launcher.instance_of(tmp_path / "data") == launcher.instance_of(tmp_path / "link")
    assert launcher.instance_of(tmp_path / "data") != launcher.instance_of(tmp_path)
    assert launcher.runtime_dir(tmp_path).name == launcher.instance_of(tmp_path)
