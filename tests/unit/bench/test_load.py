import pytest
from bench.load import Bots, Echo, Failed, Idle, Job, Latency, Server, Stream, at_prompt, decode, encode

SERVER = Server(port=2222, user="root", password='"\n', quickack=False)


@pytest.mark.parametrize(
    "job",
    [
        Latency(server=SERVER, count=3, gap=0.5, command="true"),
        Failed(server=SERVER, count=4),
        Stream(server=SERVER, size=10, pty=True),
        Echo(server=SERVER, sessions=2, rate=20, seconds=1),
        Bots(server=SERVER, rate=10, seconds=1),
        Idle(server=SERVER, count=5),
    ],
)
def test_a_job_comes_back_from_its_one_line(job: Job) -> None:
    line = encode(job)
    assert line.count(b"\n") == 1
    assert vars(decode(line)) | {"commands": None} == vars(job) | {"commands": None}


@pytest.mark.parametrize("text", [b"{}", b'{"kind": "Nonsense", "server": {}}'])
def test_what_is_no_job_is_refused(text: bytes) -> None:
    with pytest.raises(KeyError):
        decode(text)


@pytest.mark.parametrize(
    "tail",
    [
        b"root@srv01:~# ",
        b"user@host:~$ ",
        b"\x1b[?2004h\x1b]0;root@host: ~\x07root@host:~# ",
        b"last login\r\n\x1b[4hroot@svr04:~# \x1b[K",
    ],
)
def test_a_prompt_is_known_through_terminal_control(tail: bytes) -> None:
    assert at_prompt(tail)


@pytest.mark.parametrize("tail", [b"", b"\x1b[?2004h", b"# of users: ", b"motd\r\n", b"root@srv01:~#"])
def test_other_output_is_no_prompt(tail: bytes) -> None:
    assert not at_prompt(tail)
