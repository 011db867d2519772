"""Files as weapons against the sensor, which later reads them as root: boxes are filled with them, taken down, and their changes
kept. Nothing of the host may be read, followed, written or waited for."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hermes.broker.verify.box import Target, Untried
from hermes.broker.verify.probe import AT_FDCWD, Attack, Breach, probe

PLACE = "/var/tmp"
MAX_SEEN = 200_000
RENAME_EXCHANGE = 2


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every entry below a directory of the host's, without following anything."""
    pending, seen = [os.fsencode(top)], 0
    while pending:
        directory = pending.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_SEEN:
                    raise Breach(f"more than {MAX_SEEN} files were kept")
                status = entry.stat(follow_symlinks=False)
                yield Path(os.fsdecode(entry.path)), status
                if stat.S_ISDIR(status.st_mode) and len(entry.path) < 3500:
                    pending.append(entry.path)


async def _shell(target: Target, script: str, *, patience: float = 60) -> None:
    ran = await target.run(b"sh", b"-c", script.encode(), patience=patience)
    if ran.exit.status != 0:
        raise Untried(f"the files cannot be made: {ran.text}")


def _inspect(it: Attack, kept: Path, *, needed: int = 1) -> int:
    """Look at what was kept: Breach if it holds anything of the host's, or a device. Return how many entries there are."""
    token = it.host.canaries.token.encode()
    directory = kept.stat()
    if directory.st_uid != 0 or stat.S_IMODE(directory.st_mode) & 0o077:
        raise Breach(f"what was kept is open to others (mode {stat.S_IMODE(directory.st_mode):o})")
    entries = bytes_ = 0
    for path, status in _walk(kept):
        entries += 1
        bytes_ += status.st_blocks * 512
        if stat.S_ISREG(status.st_mode) and status.st_size <= 4096 and path.name != "manifest.jsonl":
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                if token in file.read():
                    raise Breach(f"a file of the host's was read into {path.name!a}")
        if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev):
            raise Breach(f"{path.name!a} was kept as a device")
    budget = it.config.forensics.max_bytes
    if bytes_ > budget + (16 << 20):
        raise Breach(f"{bytes_ >> 20} MiB were kept, where all boxes together may have {budget >> 20}")
    if entries < needed:
        raise Untried(f"only {entries} entries were kept")
    strange = {path.name for path in it.host.canaries.directory.iterdir()} - it.host.canaries.names
    if strange or it.host.canaries.file.read_bytes() != token:
        raise Breach("files of the host were changed")
    return entries


@probe("file-symlinks")
async def file_symlinks(it: Attack) -> str:
    """Leave symbolic links to files and directories of the host's: absolute ones, ones that climb, and chains of them."""
    file, directory = it.host.canaries.file, it.host.canaries.directory
    up = "../" * 40
    async with it.another() as target:
        links = {
            "absolute": file, "climbing": f"{up}{file}", "directory": directory, "chain": "absolute", "sub": f"{up}..",
            "proc": f"/proc/self/root/{file}", "loop": ".", "changes/in": directory,
        }  # fmt: skip
        made = " && ".join(f"ln -s {to} {name}" for name, to in links.items())
        await _shell(target, f"cd {PLACE} && mkdir changes && {made}")
        kept = await it.kept(target)
    return f"{_inspect(it, kept, needed=8)} entries were kept, no link was followed"


@probe("file-races")
async def file_races(it: Attack) -> str:
    """Swap a directory for a link to the host's, over and over, while the box is taken down."""
    async with it.another() as target:
        await _shell(target, f"cd {PLACE} && mkdir -p swap && : >swap/file && ln -s {it.host.canaries.directory} other")
        for _ in range(3):
            racer = await target.fresh()
            await racer.send("renameat2", AT_FDCWD, f"{PLACE}/swap", AT_FDCWD, f"{PLACE}/other", RENAME_EXCHANGE, repeat=1 << 40)
        kept = await it.kept(target)
    return f"{_inspect(it, kept)} entries were kept, no link was followed"


@probe("file-fifos")
async def file_fifos(it: Attack) -> str:
    """Leave FIFOs and sockets, at which whoever opens them waits, under the names of files that the host might read."""
    names = ("etc/passwd", "etc/hostname.fifo", "root/.bash_history.fifo", "var/log/auth.log.fifo", "var/tmp/manifest.jsonl")
    async with it.another() as target:
        await _shell(target, "; ".join(f"rm -f /{name}; mkfifo /{name}" for name in names[1:]))
        one = await target.agent()
        await one.call("unlinkat", AT_FDCWD, "/etc/passwd", 0)
        await one.call("mknodat", AT_FDCWD, "/etc/passwd", 0o010644, 0)
        await one.call("mknodat", AT_FDCWD, f"{PLACE}/socket", 0o140755, 0)
        kept = await it.kept(target)
    return f"{_inspect(it, kept)} entries were kept, nothing was waited for"


@probe("file-devices")
async def file_devices(it: Attack) -> str:
    """Leave nodes of devices, as far as any can be made, and the marks with which an overlay says that a file is gone."""
    made = 0
    async with it.another() as target:
        one = await target.agent()
        for kind, major, minor in ((0o020666, 0, 0), (0o020666, 1, 5), (0o020666, 5, 1), (0o060666, 7, 0)):
            reply = await one.call("mknodat", AT_FDCWD, f"{PLACE}/node{major}-{minor}", kind, os.makedev(major, minor))
            made += reply.ok
        await _shell(target, f"rm -rf /usr/games /srv; mkdir -p /srv && : >{PLACE}/last")
        kept = await it.kept(target)
    return f"{made} could be made; {_inspect(it, kept)} entries were kept, none is a device"


@probe("file-hard-links")
async def file_hard_links(it: Attack) -> str:
    """Leave a file under thousands of names, so that a copy would be thousands of files; and try to link files of the host's."""
    async with it.another() as target:
        one = await target.agent()
        linked = await one.call("linkat", AT_FDCWD, str(it.host.canaries.file), AT_FDCWD, f"{PLACE}/stolen", 0)
        if linked.ok:
            raise Breach("a file of the host's can be linked into the box")
        await _shell(
            target, f"cd {PLACE} && head -c 1000000 /dev/zero >one && i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done | "
            "xargs -n 500 sh -c 'for n; do ln one link$n; done' sh",
        )  # fmt: skip
        kept = await it.kept(target)
    entries = _inspect(it, kept)
    size = sum(status.st_blocks * 512 for path, status in _walk(kept) if stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
    if size > 100 << 20:
        raise Breach(f"a megabyte with 2000 names became {size >> 20} MiB")
    return f"{entries} entries were kept, {size >> 10} KiB"


@probe("file-setuid")
async def file_setuid(it: Attack) -> str:
    """Leave setuid-root programs where users of the host might run them."""
    async with it.another() as target:
        program = await target.program()
        await _shell(
            target, f"cp {program} {PLACE}/suid && chmod 6755 {PLACE}/suid && chmod 777 {PLACE} && chmod 4777 {PLACE}/suid"
        )
        kept = await it.kept(target)
    entries = _inspect(it, kept)
    place = kept.stat()
    if place.st_mode & 0o011:
        raise Breach("others can reach what was kept")
    return f"{entries} entries were kept, where only root can reach them"


@probe("file-names")
async def file_names(it: Attack) -> str:
    """Leave names that are no text: newlines, terminal commands, bytes that are no UTF-8, 255 of them, dots and dashes."""
    names = [
        b"new\nline",
        b"\x1b[2Jclear",
        b"\xff\xfe\x80",
        b"x" * 255,
        b"-rf",
        b"...",
        b"..\\..\\up",
        b"%s%n",
        b"\xe2\x80\xae",
        b" ",
    ]
    async with it.another() as target:
        one = await target.agent()
        for name in names:
            made = await one.call("mkdirat", AT_FDCWD, f"{PLACE}/".encode() + name + b"\0", 0o755)
            if not made.ok:
                raise Untried(f"{name!a} cannot be made ({made.error})")
        beside = set(it.host.directory.iterdir())
        kept = await it.kept(target)
    if strange := set(it.host.directory.iterdir()) - beside - {kept}:
        raise Breach(f"files appeared beside what was kept: {sorted(map(str, strange))[:3]!a}")
    return f"{_inspect(it, kept, needed=len(names))} entries were kept where they belong"


@probe("file-depth")
async def file_depth(it: Attack) -> str:
    """Leave 255 directories within each other whose names have 255 bytes each: a path of 65 thousand bytes."""
    name = b"d" * 255 + b"\0"
    async with it.another() as target:
        async with target.own() as own:
            await own.call("chdir", PLACE)
            for _ in range(255):
                replies = await own.batch(("mkdirat", AT_FDCWD, name, 0o755), ("chdir", name))
                if not all(reply.ok for reply in replies):
                    raise Untried(f"the directories cannot be made ({replies[0].error})")
        kept = await it.kept(target)
    return f"taken down; {_inspect(it, kept)} entries are within reach of a path"


@probe("file-numbers")
async def file_numbers(it: Attack) -> str:
    """Leave a directory of twenty thousand files, and a sparse file as large as one can be."""
    size = it.config.limits.file_size
    async with it.another() as target:
        script = "i=0; while [ $i -lt 20000 ] && true >$i; do i=$((i+1)); done; true"
        await _shell(target, f"mkdir {PLACE}/many && cd {PLACE}/many && {script}", patience=100)
        async with target.own() as own:
            opened = await own.call("openat", AT_FDCWD, f"{PLACE}/sparse", os.O_CREAT | os.O_WRONLY, 0o600)
            await own.call("ftruncate", opened.value, size)
        kept = await it.kept(target)
    entries = _inspect(it, kept, needed=100)
    used = sum(status.st_blocks * 512 for _, status in _walk(kept))
    if used > size // 2:
        raise Breach(f"an empty file of {size >> 20} MiB became {used >> 20} MiB")
    return f"{entries} entries were kept, {used >> 10} KiB"
