import io
import json
import os
import tarfile

import pytest

from hermes.broker.engines.docker_container import connect, container_config, is_of, occupied_tmp, pidfd_of
from hermes.broker.policy import Policy
from hermes.config import ContainerPoolConfig
from hermes.errors import EngineError

V1 = "12:memory:/docker/{id}\n1:name=systemd:/docker/{id}\n"
V2 = "0::/system.slice/docker-{id}.scope\n"


def config(**changes: object) -> ContainerPoolConfig:
    return ContainerPoolConfig.model_validate({"engine": "docker", "hostname": "web7", **changes})


def test_every_limit_is_passed_on() -> None:
    settings = config(
        limits={"memory": 64 << 20, "pids": 33, "cpus": 1.5, "open_files": 99, "file_size": 5 << 20},
        security={"capabilities": ["CHOWN"], "no_new_privileges": False},
    )
    told = container_config(Policy(settings.security, settings.limits), settings, "image:1", ("/sbin/init",), {"a": "b"})
    host = told["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"], host["NanoCpus"]) == (64 << 20, 64 << 20, 33, 1_500_000_000)
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {
        "nofile": 99, "fsize": 5 << 20, "core": 1, "memlock": 8 << 20, "rtprio": 0, "nice": 0,
    }  # fmt: skip
    assert (host["CapDrop"], host["CapAdd"], host["NetworkMode"], host["Privileged"]) == (["ALL"], ["CHOWN"], "none", False)
    assert (told["Hostname"], told["Image"], told["Entrypoint"], told["Labels"]) == (
        "web7",
        "image:1",
        ["/sbin/init"],
        {"a": "b"},
    )
    assert not any("no-new-privileges" in option for option in host["SecurityOpt"])


def test_safe_by_default() -> None:
    settings = config()
    host = container_config(Policy(settings.security, settings.limits), settings, "alpine", (), {})["HostConfig"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    (profile,) = [option.removeprefix("seccomp=") for option in host["SecurityOpt"] if option.startswith("seccomp=")]
    assert json.loads(profile)["defaultAction"] == "SCMP_ACT_ERRNO"
    assert not {"Binds", "Mounts", "Devices", "PidMode", "PortBindings"} & set(host)


def test_the_runtime_is_the_daemons_unless_one_is_named() -> None:
    settings = config()
    assert "Runtime" not in container_config(Policy(settings.security, settings.limits), settings, "alpine", (), {})["HostConfig"]
    settings = config(runtime="runsc", limits={"pids": 33})
    told = container_config(Policy(settings.security, settings.limits), settings, "alpine", (), {}, gvisor=True)["HostConfig"]
    assert (told["Runtime"], told["PidsLimit"]) == ("runsc", 3 * 33 + 128)


def test_tmp_is_not_empty() -> None:
    with tarfile.open(fileobj=io.BytesIO(occupied_tmp())) as tar:
        assert [(entry.name, entry.isdir(), entry.mode) for entry in tar] == [
            ("tmp/.ICE-unix", True, 0o1777),
            ("tmp/.X11-unix", True, 0o1777),
        ]


def test_a_foreign_image_gets_an_idle_init() -> None:
    settings = config()
    told = container_config(Policy(settings.security, settings.limits), settings, "alpine", (), {})
    assert told["Entrypoint"][0] == "/bin/sh"
    assert told["Cmd"] == []


@pytest.mark.parametrize("form", [V1, V2])
def test_a_container_of_this_machine_is_known_by_its_cgroup(form: str) -> None:
    container = "0123456789abcdef" * 4
    assert is_of(container, form.format(id=container))
    assert not is_of(container, form.format(id="f" * 64))
    assert not is_of("", form.format(id=container))
    assert not is_of("docker", form.format(id=container))


def test_a_process_that_is_no_containers_is_not_taken_for_it() -> None:
    assert pidfd_of(os.getpid(), "0123456789abcdef" * 4) is None
    assert pidfd_of(0, "0123456789abcdef" * 4) is None
    assert pidfd_of(1 << 22, "0123456789abcdef" * 4) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["nonsense", "ssh://somewhere", "", "npipe:////./pipe/x"])
async def test_an_impossible_address_is_refused(host: str) -> None:
    with pytest.raises(EngineError, match="host"):
        connect(host)


@pytest.mark.asyncio
async def test_certificates_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(EngineError, match="certificates"):
        connect("tcp://192.0.2.1:2376")
