"""Attacks on the box's mounts: every call that makes, moves, changes or removes one. What would succeed, stays in the box."""

import os
import struct

from hermes.broker.linux import MNT_DETACH, MS_BIND, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT
from hermes.broker.verify.box import Agent, Out, Untried
from hermes.broker.verify.probe import AT_FDCWD, USERS, Attack, Breach, probe

MS_MOVE, MS_SHARED = 8192, 1 << 20
AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = 0x1000, 0x8000, 1
MOVE_MOUNT_F_EMPTY_PATH = 4
PLACE = "/dev/shm"


async def _unseen(it: Attack, what: str) -> str:
    """Return `what`, if the host has no mount with our token."""
    if it.host.canaries.token in it.host.mounts():
        raise Breach("a mount made in the box is seen on the host")
    return what


@probe("mount", quick=True)
async def mount(it: Attack) -> str:
    """Mount new file systems: tmpfs, proc, sysfs, a disk, and the control groups with their release agent."""
    name = it.host.canaries.token
    calls = [("mount", name, PLACE, kind, 0, "") for kind in ("tmpfs", "proc", "sysfs", "cgroup", "cgroup2", "overlay", "mqueue")]
    disks = [("mount", "/dev/vda1", PLACE, kind, MS_RDONLY, "") for kind in ("ext4", "xfs")]
    return await _unseen(it, await it.all_refused(*calls, *disks))


@probe("mount-bind", quick=True)
async def mount_bind(it: Attack) -> str:
    """Bind a directory elsewhere, move a mount, remount one writable, change how mounts propagate."""
    calls = (
        ("mount", "/etc", PLACE, "", MS_BIND, 0),
        ("mount", "/dev/mqueue", PLACE, "", MS_MOVE, 0),
        ("mount", "none", "/dev/shm", "", MS_REMOUNT | MS_BIND, 0),
        ("mount", "none", "/dev/shm", "", MS_REMOUNT, "size=1g"),
        ("mount", "none", "/", "", MS_SHARED | MS_REC, 0),
        ("mount", "none", "/", "", MS_PRIVATE | MS_REC, 0),
    )
    return await _unseen(it, await it.all_refused(*calls))


@probe("fsopen", quick=True)
async def fsopen(it: Attack) -> str:
    """Mount by the newer calls: fsopen, fsconfig, fsmount, fspick."""
    create = 6
    return await it.all_refused(
        ("fsopen", "tmpfs", 0),
        ("fspick", AT_FDCWD, "/dev/shm", 0),
        ("fsconfig", 0, create, 0, 0, 0),
        ("fsmount", 0, 0, 0),
    )


@probe("open-tree", quick=True)
async def open_tree(it: Attack) -> str:
    """Copy a mount and put it elsewhere: open_tree, move_mount, mount_setattr."""
    attributes = struct.pack("<4Q", 0, MS_RDONLY, 0, 0)
    return await it.all_refused(
        ("open_tree", AT_FDCWD, "/", OPEN_TREE_CLONE | AT_RECURSIVE),
        ("open_tree_attr", AT_FDCWD, "/", OPEN_TREE_CLONE, attributes, len(attributes)),
        ("mount_setattr", AT_FDCWD, "/dev/shm", 0, attributes, len(attributes)),
        ("move_mount", AT_FDCWD, "/dev/mqueue", AT_FDCWD, PLACE, 0),
        ("move_mount", 0, "", AT_FDCWD, PLACE, MOVE_MOUNT_F_EMPTY_PATH),
    )


@probe("umount", quick=True)
async def umount(it: Attack) -> str:
    """Take away a mount that covers something."""
    return await it.all_refused(("umount2", "/dev/mqueue", MNT_DETACH), ("umount2", "/dev/shm", MNT_DETACH))


@probe("pivot-root", quick=True)
async def pivot_root(it: Attack) -> str:
    """Change the root of all processes with pivot_root, to where it says EINVAL if it is allowed at all."""
    return await it.refused("pivot_root", PLACE, "/etc")


@probe("file-handles", quick=True)
async def file_handles(it: Attack) -> str:
    """Open a file by its handle instead of its path, which ignores every directory on the way (the "shocker")."""
    handle = struct.pack("<Ii", 8, 1) + struct.pack("<II", 2, 0)
    return await it.all_refused(
        ("name_to_handle_at", AT_FDCWD, "/etc/hostname", struct.pack("<Ii", 8, 0) + bytes(8), bytes(8), 0),
        ("open_by_handle_at", AT_FDCWD, handle, os.O_RDONLY),
    )


@probe("device-nodes", quick=True)
async def device_nodes(it: Attack) -> str:
    """Make nodes of devices: memory, disks, the console, the kernel's log, FUSE, KVM."""
    block, char = 0o060600, 0o020600
    disk = os.stat(it.host.canaries.directory).st_dev  # noqa: PTH116
    devices = [(char, 1, 1), (char, 1, 11), (char, 5, 1), (char, 10, 229), (char, 10, 232), (block, 7, 0), (block, 8, 0)]
    devices.append((block, os.major(disk), os.minor(disk)))
    for user in USERS:
        one = await it.agent(user)
        for kind, major, minor in devices:
            path = f"/tmp/.node-{major}-{minor}-{kind:o}"
            made = await one.call("mknodat", AT_FDCWD, path, kind, os.makedev(major, minor))
            if not made.ok:
                continue
            opened = await one.call("openat", AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK)
            await one.call("unlinkat", AT_FDCWD, path, 0)
            if opened.ok:
                await one.call("close", opened.value)
            raise Breach(f"{user} can make a node of device {major}:{minor}{' and open it' if opened.ok else ''}")
    return f"none of {len(devices)} devices gets a node"


@probe("devices", quick=True)
async def devices(it: Attack) -> str:
    """Look for devices in /dev that are more than null, zero, full, random, tty and the box's own terminals."""
    allowed = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
    ran = await it.target.run(
        b"sh", b"-c", b'for f in /dev/* /dev/*/*; do if [ -c "$f" ] || [ -b "$f" ]; then echo "$f"; fi; done'
    )
    if ran.exit.status != 0 or not ran.stdout:
        raise Untried(f"/dev cannot be listed: {ran.text}")
    one = await it.agent()
    names = [name for name in ran.stdout.decode(errors="replace").split() if not name.startswith("/dev/pts/")]
    for name in names:
        numbers = await _device_of(one, name)
        if numbers is not None and numbers not in allowed:
            opened = await one.call("openat", AT_FDCWD, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            if opened.ok:
                await one.call("close", opened.value)
                raise Breach(f"{name} ({numbers[0]}:{numbers[1]}) is there and opens")
    return f"{len(names)} devices, all harmless"


async def _device_of(one: Agent, path: str) -> tuple[int, int] | None:
    reply = await one.call("statx", AT_FDCWD, path, 0, 0x7FF, Out(256))
    if not reply.ok:
        return None
    major, minor = struct.unpack_from("<II", reply.out[0], 128)
    return major, minor
