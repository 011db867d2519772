from pathlib import Path

import pytest

from hermes.broker.engines.docker_daemon import has_user_namespace, is_here, require_version, warnings
from hermes.errors import EngineError

REMAPPED = {"SecurityOptions": ["name=seccomp,profile=default", "name=userns"], "Driver": "overlay2"}
PLAIN = {"SecurityOptions": ["name=seccomp,profile=default"], "Driver": "overlay2"}


@pytest.mark.parametrize(
    "version", [{"ApiVersion": "1.39", "Os": "linux"}, {"ApiVersion": "1.41", "Os": "windows"}, {"Os": "linux"}]
)
def test_a_daemon_that_will_not_do(version: dict[str, str]) -> None:
    with pytest.raises(EngineError, match=r"API 1\.40 on Linux is needed"):
        require_version(version)
    require_version({"ApiVersion": "1.40", "Os": "linux"})


def test_user_namespaces_are_known() -> None:
    assert has_user_namespace(REMAPPED)
    assert has_user_namespace({"SecurityOptions": ["name=rootless"]})
    assert not has_user_namespace(PLAIN)
    assert not has_user_namespace({"SecurityOptions": None})


def test_a_daemon_of_this_machine_has_its_files_here(tmp_path: Path) -> None:
    (tmp_path / "overlay2").mkdir()
    assert is_here({"DockerRootDir": str(tmp_path), "Driver": "overlay2"})
    assert not is_here({"DockerRootDir": str(tmp_path / "no"), "Driver": "overlay2"})
    assert not is_here({})


@pytest.mark.parametrize(
    ("info", "enforced", "local", "said"),
    [
        (REMAPPED, True, False, []),
        (PLAIN, True, True, ["userns-remap"]),
        (REMAPPED, False, True, ["are watched"]),
        (REMAPPED, False, False, ["can fill that disk"]),
        (REMAPPED | {"Driver": "vfs"}, False, True, ["can fill that disk"]),
        (PLAIN, False, False, ["userns-remap", "can fill that disk"]),
    ],
)
def test_an_operator_is_told_what_is_not_held(info: dict[str, object], enforced: bool, local: bool, said: list[str]) -> None:
    told = list(warnings(info, enforced=enforced, local=local))
    assert len(told) == len(said)
    assert all(word in warning for word, warning in zip(said, told, strict=True))
