"""Logging in: every method, every secret recorded, and sshd's own words on the wire."""

import asyncio
from typing import Any

import asyncssh
import pytest

from hermes import events
from tests.front.conftest import Serve


@pytest.mark.asyncio
async def test_root_root_gets_in_with_the_real_client(serve: Serve) -> None:
    async with serve() as running:
        outcome = await running.ssh("id")
        assert (outcome.status, outcome.stdout) == (7, b"exec b'id'\n")
        attempts = await running.journal.wait_for(events.AuthAttempt, 2)
        assert [(a.method, a.username, a.password, a.accepted) for a in attempts] == [
            ("none", "root", None, False), ("password", "root", "root", True),
        ]  # fmt: skip
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert (closed.cause, closed.auth_attempts, closed.channels) == ("client", 2, 1)
        (version,) = running.journal.of(events.ClientVersion)
        assert version.version.startswith("SSH-2.0-OpenSSH_")
        (offered,) = running.journal.of(events.ClientAlgorithms)
        assert len(offered.hassh) == 32
        assert "curve25519-sha256" in offered.kex
        assert offered.encryption_to_client is None
        moments = [version.elapsed, offered.elapsed, *(a.elapsed for a in attempts), closed.duration]
        assert moments == sorted(moments)


@pytest.mark.asyncio
async def test_wrong_passwords_are_recorded_and_cut_off_like_sshd(serve: Serve) -> None:
    async with serve(server={"max_auth_tries": 3}) as running:
        secrets = iter(["one", "two", "three", "four"])

        class Client(asyncssh.SSHClient):
            def password_auth_requested(self) -> str:
                return next(secrets)

        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures") as caught:
            await running.connect(client_factory=Client, password=None)
        assert caught.value.code == asyncssh.DISC_PROTOCOL_ERROR
        attempts = running.journal.of(events.AuthAttempt)
        assert [a.password for a in attempts if a.method == "password"] == ["one", "two", "three"]
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert closed.cause == "auth-failures"
        assert not running.journal.of(events.SessionOpened)


@pytest.mark.asyncio
async def test_keyboard_interactive(serve: Serve) -> None:
    prompts: list[Any] = []

    class Client(asyncssh.SSHClient):
        def kbdint_auth_requested(self) -> str:
            return ""

        def kbdint_challenge_received(self, name: str, instructions: str, lang: str, asked: Any) -> list[str]:
            prompts.extend(asked)
            return ["root"] if asked else []

    async with serve(authentication={"methods": ("keyboard-interactive",)}) as running:
        async with running.connect(client_factory=Client, password=None) as connection:
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        assert [(str(text), echo) for text, echo in prompts] == [("Password: ", False)]
        (attempt,) = [a for a in running.journal.of(events.AuthAttempt) if a.method == "keyboard-interactive"]
        assert (attempt.responses, attempt.accepted) == (["root"], True)


@pytest.mark.asyncio
async def test_public_keys_are_recorded_and_refused(serve: Serve) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with serve() as running:
        with pytest.raises(asyncssh.PermissionDenied):
            await running.connect(client_keys=[key], password=None)
        (attempt,) = [a for a in running.journal.of(events.AuthAttempt) if a.method == "publickey"]
        assert attempt.key_type == "ssh-ed25519"
        assert attempt.key_fingerprint == key.get_fingerprint("sha256")
        assert attempt.key_fingerprint_md5 == key.get_fingerprint("md5")
        assert f"{attempt.key_type} {attempt.key}" == key.export_public_key().decode().strip()
        assert (attempt.accepted, attempt.key_signed) == (False, False)


@pytest.mark.asyncio
async def test_a_configured_key_gets_in_only_with_its_signature(serve: Serve) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()
    async with serve(authentication={"public_keys": {"root": (public,)}}) as running:
        async with running.connect(client_keys=[key], password=None) as connection:
            assert (await connection.run("x", stdin=asyncssh.DEVNULL)).exit_status == 7
        signed = [a for a in running.journal.of(events.AuthAttempt) if a.accepted]
        assert [(a.method, a.rule, a.key_signed) for a in signed] == [("publickey", "public-key", True)]


@pytest.mark.asyncio
async def test_none_when_configured(serve: Serve) -> None:
    async with serve(authentication={"accept_none": ("guest",)}) as running:
        async with running.connect(username="guest", password=None):
            pass
        (attempt,) = running.journal.of(events.AuthAttempt)
        assert (attempt.method, attempt.accepted, attempt.rule) == ("none", True, "none")


@pytest.mark.asyncio
async def test_accept_after_failures_over_connections(serve: Serve) -> None:
    async with serve(authentication={"passwords": {}, "accept_after_failures": 2}) as running:
        for _ in range(2):
            with pytest.raises(asyncssh.PermissionDenied):
                await running.connect(password="x")
        async with running.connect(password="x"):
            pass
        assert [a.rule for a in running.journal.of(events.AuthAttempt) if a.method == "password"] == [
            "denied", "denied", "after-failures",
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_two_logins_at_once_do_not_swap_identities(serve: Serve) -> None:
    async with serve(authentication={"passwords": {"*": ("*",)}}, server={"max_startups": "20"}) as running:
        names = [f"user{number}" for number in range(20)]

        async def log_in(name: str) -> None:
            async with running.connect(username=name, password=f"secret of {name}") as connection:
                await connection.run("x", stdin=asyncssh.DEVNULL)

        await asyncio.gather(*(log_in(name) for name in names))
        opened = {event.connection_id: event.username for event in running.journal.of(events.SessionOpened)}
        tried = {a.connection_id: a for a in running.journal.of(events.AuthAttempt) if a.accepted}
        assert len(opened) == 20
        for connection_id, username in opened.items():
            assert (tried[connection_id].username, tried[connection_id].password) == (username, f"secret of {username}")


@pytest.mark.asyncio
async def test_login_takes_too_long(serve: Serve) -> None:
    async with serve(server={"login_timeout": 0.05}) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        assert (await reader.read()).startswith(b"SSH-2.0-OpenSSH_9.2p1 Debian")
        writer.close()
        (timeout,) = running.journal.of(events.SessionTimeout)
        (closed,) = await running.journal.wait_for(events.ConnectionClosed)
        assert (timeout.limit, closed.cause) == ("login", "login-timeout")


@pytest.mark.asyncio
async def test_banner_and_version(serve: Serve) -> None:
    async with serve(server={"banner": "Authorised use only\n", "version": "OpenSSH_8.4p1"}) as running:
        shown: list[str] = []

        class Client(asyncssh.SSHClient):
            def auth_banner_received(self, msg: str, lang: str) -> None:
                shown.append(msg)

        async with running.connect(client_factory=Client) as connection:
            assert connection.get_extra_info("server_version") == "SSH-2.0-OpenSSH_8.4p1"
        assert shown == ["Authorised use only\n"]
