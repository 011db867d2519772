"""Rows in PostgreSQL: a row an event, told apart by the event's id, so that one that comes twice is there once."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, DateTime, Engine, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateIndex, CreateSchema, CreateTable

from hermes.config.outputs import PostgresOutput
from hermes.errors import ConfigError
from hermes.outputs.sink import Record, SinkError
from hermes.outputs.worker import Worker

DRIVER = "postgresql+psycopg"


def table_of(name: str) -> Table:
    """The table for events; `name` may have a schema before it."""
    schema, _, table = name.rpartition(".")
    made = Table(
        table,
        MetaData(schema=schema or None),
        Column("event_id", Text, primary_key=True),
        Column("id", BigInteger, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("sensor", Text, nullable=False),
        Column("event", Text, nullable=False),
        Column("connection_id", Text),
        Column("session_id", Text),
        Column("body", JSONB, nullable=False),
    )
    sqlalchemy.Index(f"{table}_time", made.c.time)
    sqlalchemy.Index(f"{table}_event", made.c.event, made.c.time)
    sqlalchemy.Index(f"{table}_session", made.c.session_id, postgresql_where=made.c.session_id.is_not(None))
    return made


def row(record: Record) -> dict[str, Any]:
    """The record as values of the table's columns. PostgreSQL knows no NUL: it stands as `\\x00`."""
    values: dict[str, Any] = _without_nul(
        {
            "event_id": record.event_id, "id": record.id, "time": record.time, "sensor": record.sensor, "event": record.event,
            "connection_id": record.connection_id, "session_id": record.session_id, "body": record.body,
        }
    )  # fmt: skip
    return values


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\\x00")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    return [_without_nul(it) for it in value] if isinstance(value, list) else value


class PostgresSink:
    """Stores records, each batch in one transaction."""

    limit = 200

    def __init__(self, config: PostgresOutput, *, url: str, password: str) -> None:
        self._config = config
        self._url = _database(url, password, config.name)
        self._table = table_of(config.table)
        seconds = max(1, round(config.timeout))
        self._engine: Engine = sqlalchemy.create_engine(
            self._url, poolclass=NullPool, hide_parameters=True,
            connect_args={
                "connect_timeout": seconds, "application_name": "hermes", "keepalives_idle": seconds,
                "tcp_user_timeout": seconds * 1000, "options": f"-c statement_timeout={seconds * 1000}",
            },
        )  # fmt: skip
        self._connection: Connection | None = None
        self._worker = Worker("postgresql")

    async def send(self, records: Sequence[Record]) -> None:
        """Return when the rows are committed. SinkError else."""
        try:
            async with asyncio.timeout(2 * self._config.timeout):
                await self._worker.do(self._store, [row(it) for it in records])
        except TimeoutError:
            self._cut()
            raise SinkError(f"the database took nothing for {2 * self._config.timeout:g} s") from None

    async def close(self) -> None:
        self._cut()
        self._worker.close(self._drop)

    def _store(self, rows: list[dict[str, Any]]) -> None:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
                self._prepare(self._connection)
            with self._connection.begin():
                self._connection.execute(insert(self._table).on_conflict_do_nothing(index_elements=["event_id"]), rows)
        except (SQLAlchemyError, psycopg.Error, OSError) as error:
            self._drop()
            raise SinkError(f"the database cannot be written: {_first_line(error)}") from None
        except BaseException:
            self._drop()
            raise

    def _prepare(self, connection: Connection) -> None:
        """Make the table where there is none; who may only insert into one that is there needs no more."""
        with connection.begin():
            if not sqlalchemy.inspect(connection).has_table(self._table.name, schema=self._table.schema):
                if self._table.schema:
                    connection.execute(CreateSchema(self._table.schema, if_not_exists=True))
                connection.execute(CreateTable(self._table, if_not_exists=True))
                for index in sorted(self._table.indexes, key=lambda it: str(it.name)):
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, psycopg.Error, OSError):
                connection.invalidate()
                connection.close()

    def _cut(self) -> None:
        """End a connection that its thread waits for, from another thread."""
        connection = self._connection
        if connection is None or connection.closed or connection.invalidated:
            return
        with contextlib.suppress(SQLAlchemyError, psycopg.Error, OSError, AttributeError):
            fd = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
            with socket.socket(fileno=os.dup(fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)


def _database(url: str, password: str, name: str) -> URL:
    try:
        made = make_url(url).set(drivername=DRIVER)
    except (SQLAlchemyError, ValueError):
        raise ConfigError(f"outputs: url of {name} is no URL of a database: postgresql://USER@HOST:PORT/DATABASE") from None
    return made.set(password=password) if password else made


def _first_line(error: BaseException) -> str:
    """What the database or the library says, without statements and values."""
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().split("\n", 1)[0][:300] or type(cause).__name__
