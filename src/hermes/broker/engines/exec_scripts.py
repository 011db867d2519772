"""What an exec API runs in a box to do what sshd would: fixed shell scripts with values as arguments, no I/O here.

Every value an attacker can choose is an argument of a script, never a part of it. Docker's API and gVisor's are JSON, which
cannot carry bytes that are not UTF-8: such a value goes as several arguments that the script puts together again (`tokens`).
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from hermes.container.messages import Spawn, Terminal

MAX_VALUES = 4096
"""Arguments and environment variables of one process, together."""
_CHUNK = 24 * 1024
"""Bytes in one encoded argument: encoded, it stays below the kernel's 128 KiB."""

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.@+-]{0,63}[$]?")
_NEW_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_PID_DIGITS = 10
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x5C}

KEEPALIVE = "trap 'exit 0' TERM; while :; do sleep 86400 & wait $!; done"
"""A shell that does nothing as PID 1 but bury orphans; works with dash, bash and busybox."""

LOGIN = r"""
set -f
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
_n=$# _v=
while [ "$_n" -gt 0 ]; do
    case $1 in
    =*) set -- "$@" "$_v${1#=}"; _v= ;;
    +*) _d=$(printf '%b.' "${1#+}"); _v=$_v${_d%.} ;;
    esac
    shift; _n=$((_n-1))
done
_token=$1 _gone=$2 _size=$3 _modes=$4 _user=$5 _place=$6 _kind=$7 _n=$8; shift 8
unset $_gone
_home= _shell= _uid=
while IFS=: read -r _name _x _uid _x _x _home _shell; do
    [ "$_name" = "$_user" ] && break
    _home= _shell= _uid=
done < /etc/passwd
: "${_home:=/}" "${_shell:=/bin/sh}"
_sized=-
if [ -n "$_size" ]; then
    { stty $_size $_modes || stty $_size; } 2>/dev/null && _sized=+
    SSH_TTY=$(tty) && export SSH_TTY
fi
set -- "$@" "" "$_token $$ $_sized"
case $_kind in
argv) set -- "$@" -; while [ "$_n" -gt 0 ]; do set -- "$@" "$1"; shift; _n=$((_n-1)); done ;;
command) set -- "$@" "${_shell##*/}" "$_shell" -c "$1"; shift ;;
login) set -- "$@" "-${_shell##*/}" "$_shell" ;;
esac
case ${_place:=$_home} in /*) ;; *) _place=/$_place ;; esac
cd -- "$_place" 2>/dev/null || cd /
unset OLDPWD
[ "$_uid" = 0 ] || PATH=/usr/local/bin:/usr/bin:/bin:/usr/games
export USER="$_user" LOGNAME="$_user" HOME="$_home" SHELL="$_shell" MAIL="/var/mail/$_user" PATH
while [ -n "$1" ]; do export "$1=$2"; shift 2; done
case $4 in
-*) false ;;
*/*) [ -f "$4" ] && [ -x "$4" ] ;;
*) command -v "$4" >/dev/null ;;
esac || { printf '%s: No such file or directory\n' "$4"; exit 127; }
printf '%s\n' "$2"
if [ "$3" = - ]; then shift 3; exec "$@"; fi
shift 2
if [ -x /bin/bash ]; then exec /bin/bash -pc 'exec -a "$0" "$@"' "$@"; fi
if [ -x /usr/bin/perl ]; then exec /usr/bin/perl -e '$n = shift; $s = $ARGV[0]; $ARGV[0] = $n; exec {$s} @ARGV' -- "$@"; fi
if (exec -a true true) 2>/dev/null; then exec -a "$@"; fi
case $1 in -*) shift; exec "$1" -l ;; esac
shift; exec "$@"
"""
"""Arguments, decoded: token, variables to unset, two lists for stty (empty without a terminal), user, working directory, kind
(`argv`, `command` or `login`), how many values follow, the values, and then name and value of each environment variable.

Once nothing can fail any more but the exec itself, it writes a line `TOKEN PID +`; `-` instead of `+` if the size is not set."""

ACCOUNT = r"""
set -f; umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
name=$1 ids= group=
while IFS=: read -r n x u x; do [ "$n" = "$name" ] && exit 0; ids="$ids $u "; done < /etc/passwd
while IFS=: read -r n x g x; do [ "$n" = "$name" ] && group=$g; ids="$ids $g "; done < /etc/group
id=1000
while case $ids in *" $id "*) ;; *) false ;; esac; do id=$((id+1)); done
shell=/bin/sh; [ -x /bin/bash ] && shell=/bin/bash
[ -n "$group" ] || { group=$id; printf '%s:x:%s:\n' "$name" "$id" >> /etc/group; }
[ ! -f /etc/shadow ] || printf '%s:!:19700:0:99999:7:::\n' "$name" >> /etc/shadow
home=/home/$name
mkdir -p /home
[ -d "$home" ] || { cp -R /etc/skel "$home" 2>/dev/null || mkdir -p "$home"
    chmod 700 "$home"; chown -R "$id:$group" "$home"; }
printf '%s:x:%s:%s:,,,:%s:%s\n' "$name" "$id" "$group" "$home" "$shell" >> /etc/passwd
"""
"""Make the account $1, unless it is there."""

SIGNAL = r"""
session=$1; shift
for p in /proc/[0-9]*; do
    l=
    while read -r part; do l=$part; done 2>/dev/null < "$p/stat"
    s=${l##*) }; s=${s#* }; s=${s#* }; s=${s#* }
    [ "${s%% *}" = "$session" ] && for n in "$@"; do kill -s "$n" "${p#/proc/}" 2>/dev/null; done
done
:
"""
"""Send the signals $2… to every process of the session $1."""

ACCOUNTS = ["/bin/sh", "-c", "cat /etc/passwd; printf '\\0'; cat /etc/group"]
"""The command, for root, that writes the passwd file, a NUL and the group file."""

READY = ["/bin/sh", "-c", "ls -d / >/dev/null && if [ -x /bin/bash ]; then /bin/bash -lc : </dev/null >/dev/null 2>&1 || :; fi"]
"""The command, for root, that succeeds where programs run, and makes a first login find its files in caches."""

_CHARACTERS = {
    1: "intr", 2: "quit", 3: "erase", 4: "kill", 5: "eof", 6: "eol", 7: "eol2", 8: "start", 9: "stop", 10: "susp", 12: "rprnt",
    13: "werase", 14: "lnext",
}  # fmt: skip
_FLAGS = {
    30: "ignpar", 31: "parmrk", 32: "inpck", 33: "istrip", 34: "inlcr", 35: "igncr", 36: "icrnl", 37: "iuclc", 38: "ixon",
    39: "ixany", 40: "ixoff", 41: "imaxbel", 42: "iutf8", 50: "isig", 51: "icanon", 52: "xcase", 53: "echo", 54: "echoe",
    55: "echok", 56: "echonl", 57: "noflsh", 58: "tostop", 59: "iexten", 60: "echoctl", 61: "echoke", 70: "opost", 71: "olcuc",
    72: "onlcr", 73: "ocrnl", 74: "onocr", 75: "onlret", 92: "parenb", 93: "parodd",
}  # fmt: skip


class Impossible(ValueError):
    """No process can be started like that. The text says why, as a system call would."""


def may_exist(name: str) -> bool:
    """It could be a user's name: it is no number, and nothing that Docker reads as `user:group`."""
    return _USER.fullmatch(name) is not None


def may_be_made(name: str) -> bool:
    """A name that `adduser` takes."""
    return _NEW_USER.fullmatch(name) is not None


def tokens(value: bytes) -> Iterator[str]:
    """The arguments that stand for one value: `=text`, or, where it is not UTF-8, `+` and escapes, as often as needed, and `=`.

    Raises Impossible for what no argument can hold.
    """
    if b"\0" in value:
        raise Impossible("Invalid argument (it contains a NUL)")
    try:
        yield "=" + value.decode()
    except UnicodeDecodeError:
        for start in range(0, len(value), _CHUNK):
            chunk = value[start : start + _CHUNK]
            yield "+" + "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in chunk)
        yield "="


def stty(terminal: Terminal) -> tuple[str, str]:
    """The terminal's size and its modes as words for `stty`. Modes it cannot set are left out."""
    words = []
    for opcode, value in terminal.modes.items():
        if (name := _FLAGS.get(opcode)) is not None:
            words.append(name if value else f"-{name}")
        elif (name := _CHARACTERS.get(opcode)) is not None and 0 <= value <= 255:
            words.append(f"{name} {_character(value)}")
        elif opcode in {90, 91} and value:
            words.append(f"cs{opcode - 83}")
    return f"rows {limit(terminal.height)} cols {limit(terminal.width)}", " ".join(words)


def limit(size: int) -> int:
    """The nearest size a terminal can have."""
    return max(0, min(size, 0xFFFF))


def _character(value: int) -> str:
    if value in {0, 255}:
        return "undef"
    if value == 127:
        return "^?"
    # A number of one digit would be taken for the digit itself.
    return f"^{chr(value + 64)}" if value < 32 else str(value)


class Greeting(NamedTuple):
    """What `LOGIN` says as the last thing before it becomes the process."""

    pid: int
    sized: bool
    """The terminal's size and modes are set."""


def greeting(line: bytes, token: str) -> Greeting | None:
    """Read the first line that came from `LOGIN`; None if it is no greeting with this token."""
    words = line.split()
    if len(words) != 3 or words[0] != token.encode() or not words[1].isdigit() or len(words[1]) > _PID_DIGITS:
        return None
    return Greeting(int(words[1]), words[2] != b"-")


def login(spawn: Spawn, token: str, unset: tuple[str, ...] = (), *, size: bool = True) -> list[str]:
    """The command, for an exec as `spawn.user`, that becomes what `spawn` asks for.

    `unset` names variables the container has of its own; `size`: the terminal's size and modes are still to be set.
    Raises Impossible if that cannot be.
    """
    if not may_exist(spawn.user):
        raise Impossible("no such user")
    env = dict(spawn.env)
    if spawn.terminal is not None:
        env = {b"TERM": spawn.terminal.term.encode(errors="replace"), **env}
    values = spawn.argv or (() if spawn.command is None else (spawn.command,))
    if len(values) + 2 * len(env) > MAX_VALUES:
        raise Impossible("Argument list too long")
    if spawn.argv and not spawn.argv[0]:
        raise Impossible("No such file or directory")
    kind = "argv" if spawn.argv else "login" if spawn.command is None else "command"
    gone = " ".join(name for name in (*unset, "HOSTNAME", "TERM") if _VARIABLE.fullmatch(name.encode()))
    rows, modes = stty(spawn.terminal) if spawn.terminal is not None and size else ("", "")
    fixed = (token, gone, rows, modes, spawn.user)
    words = [token for text in fixed for token in tokens(text.encode())]
    words += tokens(spawn.cwd or b"")
    words += [f"={kind}", f"={len(values)}"]
    for value in values:
        words += tokens(value)
    for name, value in env.items():
        # A shell can export nothing else, and neither does any client in its right mind ask for it.
        if _VARIABLE.fullmatch(name):
            words += [f"={name.decode()}", *tokens(value)]
    return ["/bin/sh", "-c", LOGIN, "sshd", *words]


def account(name: str) -> list[str]:
    """The command, for root, that makes a user's account."""
    return ["/bin/sh", "-c", ACCOUNT, "sh", name]


def signal(session: int, names: tuple[str, ...]) -> list[str]:
    """The command, for root, that sends signals to a session."""
    return ["/bin/sh", "-c", SIGNAL, "sh", str(session), *names]
