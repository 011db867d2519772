"""The system calls that front, analyst, outputs and who looks at files may make: lists of what is allowed; the launcher compiles
them, they submit.

What none of them ever calls, and an attacker who owns one would, ends it (SIGSYS, and the launcher says so). Everything else is
refused (EPERM) and stands in the kernel's log. Calls younger than these lists do not exist, so that newer C libraries fall back.
"""

import errno
import fcntl
import socket
import struct
import termios

from hermes.broker.seccomp import Profile, Rule, all_but, compile_bpf, machine

_ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile
    open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2
    stat lstat fstat newfstatat fstatat64 statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd
    statfs fstatfs truncate ftruncate fallocate fsync fdatasync sync_file_range fadvise64 flock umask fchmod
    mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
    accept accept4 listen getsockname getpeername getsockopt shutdown recvfrom recvmsg recvmmsg
    munmap mremap madvise brk msync mincore
    futex futex_waitv set_robust_list get_robust_list set_tid_address rseq membarrier
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall
    exit exit_group getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid
    getrlimit getrusage times sysinfo uname getrandom getcpu sched_yield sched_getaffinity sched_getparam sched_getscheduler
    time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep
"""

_FATAL = """
    execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp fork vfork
    mount umount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr unshare setns
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl
    init_module finit_module delete_module create_module kexec_load kexec_file_load reboot swapon swapoff acct syslog
    open_by_handle_at name_to_handle_at quotactl quotactl_fd iopl ioperm modify_ldt lookup_dcookie
    settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname vhangup personality
"""

_LOOK_ALLOWED = """
    read readv pread64 preadv lseek write close fstat newfstatat fstatat64 statx fcntl
    munmap mremap madvise brk futex sched_yield sched_getaffinity getcpu rseq set_robust_list membarrier
    rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    exit exit_group getpid gettid getuid geteuid getgid getegid getrusage sysinfo getrandom
    time gettimeofday clock_gettime clock_getres
"""
_LOOK_FATAL = """
    clone clone3 pidfd_open socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvmsg
    open openat openat2 creat link linkat symlink symlinkat unlink unlinkat rename renameat renameat2 mkdir mkdirat
    kill tkill pidfd_send_signal prctl seccomp setrlimit setitimer alarm timer_create
"""

_FCNTL = (
    fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL, fcntl.F_GETLK,
    fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW, fcntl.F_GETPIPE_SZ,
)  # fmt: skip
"""Not F_SETOWN, F_SETSIG, F_NOTIFY, F_SETLEASE: by them the kernel sends others signals."""
_IOCTL = (
    termios.FIONBIO, termios.FIONREAD, termios.FIOCLEX, termios.FIONCLEX, termios.TCGETS, termios.TIOCGWINSZ, termios.TIOCSWINSZ,
)  # fmt: skip
_NETLINK_ROUTE = 0
_YOUNG = 451
"""The first system call that this list does not know, on every architecture: cachestat, of Linux 6.5."""
_LOAD_NUMBER, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x35, 0x06
_UNLESS_YOUNG = ((_LOAD_NUMBER, 0, 0, 0), (_JUMP_IF_AT_LEAST, 0, 1, _YOUNG), (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS))
_PRCTL = (15, 0x53564D41)  # PR_SET_NAME; PR_SET_VMA, by which malloc names its memory
_PROT_EXEC = 4
_CLONE_THREAD = 0x10000
_SO_LINGER = 13
"""Who gets such a socket from the front waits for its peer when it closes it."""
_MSG_FASTOPEN = 0x20000000
"""sendto(2) and the like would connect with it."""


def front() -> bytes:
    """The front's filter, as an array of `struct sock_filter`."""
    return _compiled(_profile())


def analyst() -> bytes:
    """The analyst's: besides, it may wait for its scanner, which it has forked before; it forks no more."""
    return _compiled(_profile({"names": ["wait4"], "action": "SCMP_ACT_ALLOW"}))


def outputs() -> bytes:
    """That of outputs: besides, it may connect to others."""
    return _compiled(
        _profile(
            *(_allowed(["socket"], (0, int(family))) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)),
            _allowed(["socket"], (0, int(socket.AF_NETLINK)), (2, _NETLINK_ROUTE)),
            {"names": ["connect", "bind", "sendto", "sendmsg", "sendmmsg"], "action": "SCMP_ACT_ALLOW"},
            _allowed(["ioctl"], (1, termios.TIOCOUTQ)),
            but=frozenset({"sendto", "sendmsg", "sendmmsg"}),
        )
    )


def look() -> bytes:
    """That of the process which looks at one hostile file (`analysis/scanner.py`): it may read what it has open, compute, and
    answer. It has no thread, no program, no socket, no signal, and no name of a file."""
    return _compiled(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": errno.EPERM,
            "architectures": [machine()[1]],
            "syscalls": [
                {"names": _LOOK_ALLOWED.split(), "action": "SCMP_ACT_ALLOW"},
                {"names": sorted({*_FATAL.split(), *_LOOK_FATAL.split()}), "action": "SCMP_ACT_KILL_PROCESS"},
                _masked(["mmap", "mprotect", "pkey_mprotect"], 2, _PROT_EXEC, 0),
            ],
        }
    )


def _profile(*more: Rule, but: frozenset[str] = frozenset()) -> Profile:
    """The front's rules, as `seccomp.compile_bpf` takes them, without those for the calls `but`, and `more`."""
    rules: list[Rule] = [
        {"names": _ALLOWED.split(), "action": "SCMP_ACT_ALLOW"},
        {"names": sorted({*_FATAL.split()} - but), "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
        *(_allowed(["fcntl"], (1, command)) for command in _FCNTL),
        *(_allowed(["ioctl"], (1, command)) for command in _IOCTL),
        *(_allowed(["prctl"], (0, option)) for option in _PRCTL),
        _allowed(["socketpair"], (0, int(socket.AF_UNIX))),
        _allowed(["prlimit64"], (0, 0), (2, 0)),
        _masked(["mmap", "mprotect", "pkey_mprotect"], 2, _PROT_EXEC, 0),
        *(_masked(["setsockopt"], 2, mask, value) for mask, value in all_but(frozenset({_SO_LINGER}))),
        _masked(["clone"], 0, _CLONE_THREAD, _CLONE_THREAD),
        _masked(["sendmsg"], 2, _MSG_FASTOPEN, 0),
        _masked(["sendmmsg"], 3, _MSG_FASTOPEN, 0),
    ]
    to_nobody = _masked(["sendto"], 3, _MSG_FASTOPEN, 0)
    to_nobody["args"].append({"index": 4, "value": 0, "op": "SCMP_CMP_EQ"})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [machine()[1]],
        "syscalls": [*(rule for rule in [*rules, to_nobody] if not but.issuperset(rule["names"])), *more],
    }


def _compiled(profile: Profile) -> bytes:
    return b"".join(_instruction(*it) for it in _UNLESS_YOUNG) + compile_bpf(profile)


def _instruction(code: int, true: int, false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, true, false, value)


def _allowed(names: list[str], *arguments: tuple[int, int]) -> Rule:
    tests = [{"index": index, "value": value, "op": "SCMP_CMP_EQ"} for index, value in arguments]
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": tests}


def _masked(names: list[str], index: int, mask: int, value: int) -> Rule:
    test = {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": [test]}
