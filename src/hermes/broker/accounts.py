"""Users of a box, read from the box's own files, which the attacker may have made into anything. Imported by the zygote.

Every file is opened so that it cannot block (FIFO, lease), must be a regular one, and is read up to a limit.
"""

import os
import re
import stat
import time

_MAX_FILE = 1 << 20
_MAX_SKELETON = 64
_VALID_NAME = re.compile(rb"[a-z_][a-z0-9_-]{0,31}\Z")
_FIRST_UID, _LAST_UID = 1000, 59999
_MAX_ID = 0xFFFFFFFE
_DAY = 86400


class UnknownUser(Exception):
    """The user does not exist in the box and cannot be made."""


class Account:
    """A user as login needs it."""

    __slots__ = ("gid", "groups", "home", "name", "shell", "tty_gid", "uid")

    def __init__(self, name: bytes, uid: int, gid: int, home: bytes, shell: bytes) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home or b"/"
        self.shell = shell or b"/bin/sh"
        self.groups = [gid]
        self.tty_gid: int | None = None
        """The group `tty`, which owns terminals."""


def read_regular(path: str) -> bytes:
    """The first MiB of a regular file. `OSError` for anything else."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no regular file")
        chunks = []
        left = _MAX_FILE
        while left and (chunk := os.read(fd, left)):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)


def _number(field: bytes) -> int | None:
    return value if field.isdigit() and len(field) < 11 and (value := int(field)) <= _MAX_ID else None


def parse_passwd(data: bytes, name: bytes) -> Account | None:
    """The first well-formed entry of `name` in a passwd file."""
    for line in data.split(b"\n"):
        if not line.startswith(name):
            continue
        fields = line.split(b":")
        if len(fields) != 7 or fields[0] != name:
            continue
        if (uid := _number(fields[2])) is not None and (gid := _number(fields[3])) is not None:
            return Account(name, uid, gid, fields[5], fields[6])
    return None


def parse_groups(data: bytes, account: Account) -> None:
    """Give the account its supplementary groups from a group file."""
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) != 4 or (gid := _number(fields[2])) is None:
            continue
        if fields[0] == b"tty":
            account.tty_gid = gid
        if gid not in account.groups and account.name in fields[3].split(b",") and len(account.groups) < 1024:
            account.groups.append(gid)


def find(name: bytes, root: str = "/") -> Account:
    """Look the user up; make one with a valid name that does not exist. `UnknownUser`, or `OSError` where files are damaged."""
    account = parse_passwd(read_regular(f"{root}etc/passwd"), name)
    if account is None:
        if not _VALID_NAME.match(name):
            raise UnknownUser(name)
        account = _create(name, root)
    try:
        parse_groups(read_regular(f"{root}etc/group"), account)
    except OSError:
        account.groups = [account.gid]
    return account


def _create(name: bytes, root: str) -> Account:
    """Add the user as adduser does: an id of its own, a group, a home from /etc/skel, no password."""
    taken = set()
    for file in ("etc/passwd", "etc/group"):
        for line in read_regular(root + file).split(b"\n"):
            fields = line.split(b":")
            if len(fields) > 3 and (number := _number(fields[2])) is not None:
                taken.add(number)
    free = (number for number in range(_FIRST_UID, _LAST_UID + 1) if number not in taken)
    uid = next(free, None)
    if uid is None:
        raise UnknownUser(name)
    account = Account(name, uid, uid, b"/home/" + name, b"/bin/bash")
    text = name.decode()
    days = int(time.time()) // _DAY
    _append(f"{root}etc/group", f"{text}:x:{uid}:\n")
    _append(f"{root}etc/passwd", f"{text}:x:{uid}:{uid}:,,,:/home/{text}:/bin/bash\n")
    for file, entry in (("etc/shadow", f"{text}:!:{days}:0:99999:7:::\n"), ("etc/gshadow", f"{text}:!::\n")):
        try:
            _append(root + file, entry)
        except OSError:
            continue
    _make_home(f"{root}home/{text}", f"{root}etc/skel", uid)
    return account


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        if status.st_size and os.pread(fd, 1, status.st_size - 1) != b"\n":
            line = "\n" + line
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _make_home(home: str, skeleton: str, uid: int) -> None:
    try:
        os.mkdir(home, 0o700)  # noqa: PTH102
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        with os.scandir(skeleton) as entries:
            names = [
                entry.name
                for entry, _ in zip(entries, range(_MAX_SKELETON), strict=False)
                if entry.is_file(follow_symlinks=False)
            ]
        for name in names:
            data = read_regular(f"{skeleton}/{name}")
            copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=fd)
            try:
                os.write(copy, data)
                os.fchown(copy, uid, uid)
            finally:
                os.close(copy)
    except OSError:
        pass
    finally:
        os.fchown(fd, uid, uid)
        os.close(fd)
