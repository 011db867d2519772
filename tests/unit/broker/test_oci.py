"""What the runtime is told, and what it is believed to have said."""

import asyncio
import os
from pathlib import Path

import pytest

from hermes.broker.oci import BOOT_SHARES, MAX_TERMINALS, Runtime, config, forget
from hermes.broker.policy import Policy
from hermes.config.models import LimitsConfig, SecurityConfig
from hermes.errors import EngineError

POLICY = Policy(SecurityConfig(), LimitsConfig(memory=64 << 20, pids=33, cpus=0.5, open_files=128))


def _config(**changes: object) -> dict[str, object]:
    arguments: dict[str, object] = {"init": ("/sbin/init",), "hostname": "web", "base": 1 << 27, "cgroup": "/h/1", "swap": True}
    return config(POLICY, **{**arguments, **changes})  # type: ignore[arg-type]


def test_limits_reach_the_runtime() -> None:
    linux = _config()["linux"]
    assert isinstance(linux, dict)
    resources = linux["resources"]
    assert resources["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert resources["pids"] == {"limit": 33}
    assert resources["cpu"] == {"quota": 50_000, "period": 100_000, "shares": BOOT_SHARES}
    assert resources["devices"] == [{"allow": False, "access": "rwm"}]
    assert linux["cgroupsPath"] == "/h/1"
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 1 << 27, "size": 65536}]
    assert {entry["type"] for entry in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "network", "cgroup", "user"}
    assert linux["seccomp"] == POLICY.oci_seccomp()


def test_swap_is_only_limited_where_it_can_be() -> None:
    linux = _config(swap=False)["linux"]
    assert isinstance(linux, dict)
    assert linux["resources"]["memory"] == {"limit": 64 << 20}


def test_the_process() -> None:
    process = _config()["process"]
    assert isinstance(process, dict)
    assert process["args"] == ["/sbin/init"]
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}, "nothing inheritable, nothing ambient"
    assert {"type": "RLIMIT_NOFILE", "soft": 128, "hard": 128} in process["rlimits"]
    for name in ("RLIMIT_RTPRIO", "RLIMIT_NICE"):
        assert {"type": name, "soft": 0, "hard": 0} in process["rlimits"]
    assert process["user"] == {"uid": 0, "gid": 0, "umask": 0o022}
    assert process["oomScoreAdj"] == 0, "the broker's own standing is not passed on"


def test_everything_that_grows_in_memory_is_sized() -> None:
    mounts = _config()["mounts"]
    assert isinstance(mounts, list)
    for mount in mounts:
        if mount["type"] == "tmpfs":
            assert any(option.startswith("size=") for option in mount["options"])
    (pts,) = (mount for mount in mounts if mount["type"] == "devpts")
    assert f"max={MAX_TERMINALS}" in pts["options"]


def test_crun_takes_ready_made_bpf() -> None:
    assert _config(bpf="AAAA")["annotations"] == {"run.oci.seccomp_bpf_data": "AAAA"}
    assert _config()["annotations"] == {}
    assert Runtime("/usr/bin/crun", Path("/s")).is_crun
    assert not Runtime("/usr/sbin/runc", Path("/s")).is_crun


def test_gvisor_has_room_for_its_own_tasks() -> None:
    linux = _config(sandboxed=True)["linux"]
    assert isinstance(linux, dict)
    assert linux["resources"]["pids"] == {"limit": 3 * 33 + 128}


def test_gvisor_is_told_to_write_where_files_are_kept() -> None:
    runtime = Runtime("/usr/bin/runsc", Path("/s"))
    assert runtime.is_runsc
    assert {"--overlay2=none", "--file-access=shared", "--directfs=false"} <= set(runtime.arguments)
    assert Runtime("/usr/bin/runc", Path("/s")).arguments == ("--root", "/s")


def test_a_runtime_forgets_one_container(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name in ("one_sandbox:one.state", "one_sandbox:one.lock", "runsc-one.sock", "other_sandbox:other.state"):
        (tmp_path / name).touch()
    forget(tmp_path, "one")
    forget(tmp_path, "none")
    assert [path.name for path in tmp_path.iterdir()] == ["other_sandbox:other.state"]


def _script(tmp_path: Path, text: str) -> Runtime:
    program = tmp_path / "runtime"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return Runtime(str(program), tmp_path / "state")


@pytest.mark.asyncio
async def test_run_returns_the_pid(tmp_path: Path) -> None:
    runtime = _script(tmp_path, f'printf "%s " "$@" > {tmp_path}/arguments; echo 4321 > {tmp_path}/pid')
    assert await runtime.run("box", tmp_path) == 4321
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith(f"--root {tmp_path}/state ")
    assert arguments.endswith(f"run --detach --bundle {tmp_path} --pid-file {tmp_path}/pid box ")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("log", "said"),
    [
        ('{"msg": "first"}\n{"msg": "last words"}\n', "last words"),
        ('{"msg": "last words"}\n{"level": "x"}\nnot json\n[]\n', "last words"),
        ("", "exit status 3"),
    ],
)
async def test_run_tells_what_the_runtime_said(tmp_path: Path, log: str, said: str) -> None:
    (tmp_path / "log").write_text(log)
    with pytest.raises(EngineError, match=said):
        await _script(tmp_path, "exit 3").run("box", tmp_path)


@pytest.mark.asyncio
async def test_cancelled_it_kills_the_runtime_which_may_have_just_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killpg = os.killpg

    def ended_meanwhile(group: int, signal: int) -> None:
        killpg(group, signal)
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", ended_meanwhile)
    started = tmp_path / "started"
    os.mkfifo(started)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(_script(tmp_path, f"echo $$ > {started}; sleep 999").run("box", tmp_path))
        pid = int(await asyncio.to_thread(started.read_text))
        run.cancel()
    assert run.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.asyncio
async def test_a_runtime_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be run"):
        await Runtime(str(tmp_path / "none"), tmp_path).run("box", tmp_path)
