"""Who changed what: an append-only, hash-chained log, written in the transaction of the change."""

from serai.audit.store import SYSTEM, Actor, Entry, Head, Verdict, entries, head, record, take_effects, verify

__all__ = ["SYSTEM", "Actor", "Entry", "Head", "Verdict", "entries", "head", "record", "take_effects", "verify"]
