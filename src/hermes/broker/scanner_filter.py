"""The system calls that the process which looks at one hostile file may make: to read what it holds, to compute, to answer.

The launcher compiles the list; the analyst's scanner submits to it for each file (`analysis/scanner.py`). It has no thread, no
program, no socket, no signal and no name of a file: what it never calls, and an attacker who owns it would, ends it.
"""

import errno

from hermes.broker.seccomp import Profile, compile_bpf, machine

_ALLOWED = """
    read readv pread64 preadv lseek write close fstat newfstatat fstatat64 statx fcntl
    munmap mremap madvise brk futex sched_yield sched_getaffinity getcpu rseq set_robust_list membarrier
    rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    exit exit_group getpid gettid getuid geteuid getgid getegid getrusage sysinfo getrandom
    time gettimeofday clock_gettime clock_getres
"""
_FATAL = """
    execve execveat fork vfork clone clone3 ptrace process_vm_readv process_vm_writev pidfd_getfd pidfd_open
    socket socketpair connect bind listen accept accept4 sendto sendmsg sendmmsg recvmsg
    open openat openat2 creat link linkat symlink symlinkat unlink unlinkat rename renameat renameat2 mkdir mkdirat
    kill tkill pidfd_send_signal prctl seccomp setrlimit bpf perf_event_open userfaultfd io_uring_setup
    mount umount2 unshare setns chroot pivot_root keyctl add_key request_key setitimer alarm timer_create
"""
_PROT_EXEC = 4


def profile() -> Profile:
    """The filter's rules, as `seccomp.compile_bpf` takes them."""
    not_executable = {"index": 2, "value": _PROT_EXEC, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [machine()[1]],
        "syscalls": [
            {"names": _ALLOWED.split(), "action": "SCMP_ACT_ALLOW"},
            {"names": _FATAL.split(), "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["mmap", "mprotect", "pkey_mprotect"], "action": "SCMP_ACT_ALLOW", "args": [not_executable]},
        ],
    }


def compiled() -> bytes:
    """The filter, as an array of `struct sock_filter`."""
    return compile_bpf(profile())
