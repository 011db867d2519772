"""The store: the journal's one writer (`Journal`), and its readers (`JournalReader`)."""

from hermes.store.journal import Journal
from hermes.store.queries import JournalReader, Session, StoredEvent

__all__ = ["Journal", "JournalReader", "Session", "StoredEvent"]
