"""The schema: each table with its purpose and writer. `prepare` creates or migrates a file."""

from __future__ import annotations

import sqlite3

from cached_session.errors import JournalError, JournalTooNew
from cached_session.journal.tables import search_index as index_table
from cached_session.journal.tables.cell_checks import with_checks
from cached_session.journal.tables.migrations import migrate

__all__ = ["APPLICATION_ID", "FORMAT", "identify", "migrate_file", "prepare"]

APPLICATION_ID = 0x63736A6C
"""``csjl`` in the file's header, which distinguishes a journal from other SQLite files."""
FORMAT = 3
"""The format that this code writes (``PRAGMA user_version``). A new format needs a migration."""

DDL = """
-- One row a session. `session_id` is TEXT, or a BLOB where the id has lone surrogates.
-- Written by every operation; `met` and below by the replicator.
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    session_id UNIQUE NOT NULL,
    stamp INTEGER NOT NULL DEFAULT 0,      -- the largest stamp seen
    last_writer TEXT NOT NULL DEFAULT '',  -- who wrote the operation applied last
    items INTEGER NOT NULL DEFAULT 0,      -- visible items of the main branch
    revision INTEGER NOT NULL DEFAULT 0,   -- counts the transactions that changed the session
    met INTEGER NOT NULL DEFAULT 0,        -- 1 once the first read has waited for the server
    hydrated INTEGER NOT NULL DEFAULT 0,   -- 1 once a pull has reached the oldest memory
    ground INTEGER NOT NULL DEFAULT 0,     -- newest server second of the last finished pull
    ground_ms INTEGER NOT NULL DEFAULT 0,  -- wall clock since which that is so
    pulled_ms INTEGER NOT NULL DEFAULT 0,  -- wall clock of the last finished pull
    guarded_ms INTEGER NOT NULL DEFAULT 0, -- wall clock of the last lifecycle guard; 0: never
    guard TEXT NOT NULL DEFAULT '',        -- what the guard could not do; '' if all was done
    conflicts INTEGER NOT NULL DEFAULT 0,  -- operations seen again with other content
    unreadable INTEGER NOT NULL DEFAULT 0, -- memories of ours that could not be read, last pull
    created_ms INTEGER NOT NULL
);

-- The log: one row an operation, own or from elsewhere, in the order of application (`seq`). An
-- append holds its payloads, so no other table has a copy of an item.
CREATE TABLE ops (
    seq INTEGER PRIMARY KEY,               -- never used twice, see `parked_operations.py`
    session INTEGER NOT NULL,              -- 0: a dropped operation, whose `seq` stays in use
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    kind TEXT NOT NULL,                    -- append, pop, clear, mark
    turn_stamp INTEGER NOT NULL,           -- the turn of an append: its head's stamp and dot;
    turn_writer TEXT NOT NULL,             -- otherwise the operation's own
    turn_counter INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    said_ms INTEGER NOT NULL,
    count INTEGER NOT NULL,                -- payloads (append: items of the batch)
    live INTEGER NOT NULL,                 -- visible items of it
    bytes INTEGER NOT NULL,                -- payload bytes, for limits and batching
    private INTEGER NOT NULL,              -- 1: no readable text on the server
    digest TEXT NOT NULL,                  -- identity of the content (history/ops.py)
    conflicted INTEGER NOT NULL DEFAULT 0, -- 1: seen again with other content
    resent INTEGER NOT NULL DEFAULT 0,     -- 1: sent again after a lost answer
    branch TEXT NOT NULL,                  -- '' for the main branch
    key_id TEXT NOT NULL,                  -- key that encrypts the payloads; '' for none
    version INTEGER NOT NULL,              -- wire version
    tokens INTEGER,                        -- tokens of the visible items; NULL: not counted
    codec INTEGER NOT NULL,                -- of the payloads of an append: sqlite/codec.py
    body TEXT                              -- payloads (payloads.py); NULL: none is visible
);
-- The order of the history of each branch. Only operations with visible items are in it.
CREATE INDEX place ON ops (
    session, branch, turn_stamp, turn_writer, turn_counter, stamp, writer, counter
) WHERE live > 0;
-- Pops and clears: what a new clear has to leave out.
CREATE INDEX removals ON ops (session, kind) WHERE kind <> 'append';

-- The outbox: each operation that the server has not acknowledged. Small rows, so that an
-- acknowledgement does not write a payload.
CREATE TABLE waiting (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    seq INTEGER NOT NULL,                  -- the operation's row in `ops`
    count INTEGER NOT NULL,                -- its payloads
    state INTEGER NOT NULL DEFAULT 0,      -- 0 pending, 1 sent, 3 parked
    error TEXT,                            -- why it is parked
    PRIMARY KEY (session, writer, counter)
) WITHOUT ROWID;
-- All other operations. Every operation is in `waiting` or in `acked`, by its dot.
CREATE TABLE acked (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (session, writer, counter)
) WITHOUT ROWID;

-- Tool calls: which appends make a call. Written with the append. A row may outlive its item, so a
-- reader looks into the item.
CREATE TABLE calls (
    session INTEGER NOT NULL,
    call INTEGER NOT NULL,                 -- hash of the call's id (tables/calls.py)
    seq INTEGER NOT NULL,                  -- the append
    PRIMARY KEY (session, call, seq)
) WITHOUT ROWID;

-- Marks: of each type and key the one that is last in order. Written when a mark is applied; its
-- operation stays in `ops`, because the server needs it.
CREATE TABLE marks (
    session INTEGER NOT NULL,
    type TEXT NOT NULL,
    key TEXT NOT NULL,
    stamp INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    value TEXT NOT NULL,                   -- JSON
    PRIMARY KEY (session, type, key)
) WITHOUT ROWID;

-- What is applied: per writer the prefix without holes, and the ranges above the first hole. An
-- append by this journal need not update this row, nor the row of its session: while `behind` is 1,
-- rows of `waiting` above `upto` are applied too (tables/unfolded.py).
CREATE TABLE frontier (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    upto INTEGER NOT NULL,
    run_stamp INTEGER NOT NULL DEFAULT 0,  -- stamp of this writer's current run
    last_ms INTEGER NOT NULL DEFAULT 0,    -- wall clock of its last operation
    behind INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session, writer)
) WITHOUT ROWID;
CREATE INDEX behind ON frontier (session) WHERE behind = 1;
CREATE TABLE above (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (session, writer, first)
) WITHOUT ROWID;

-- What applied clears cover, as their union: hides appends that arrive after the clear.
CREATE TABLE cleared (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (session, writer, first)
) WITHOUT ROWID;

-- The part of `cleared` that the server has acknowledged: a new clear need not repeat it, so that
-- its size is that of what happened since. Written when a clear is acked or pulled.
CREATE TABLE settled (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (session, writer, first)
) WITHOUT ROWID;

-- Items that applied pops name and that are not here yet: hides them when they arrive. A row goes
-- when its append comes. `count` is the batch size.
CREATE TABLE popped (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (session, writer, counter, idx)
) WITHOUT ROWID;

-- Parts of operations that have not arrived whole. Emptied as operations complete.
CREATE TABLE parts (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    digest TEXT NOT NULL,
    idx INTEGER NOT NULL,                  -- payload within the operation
    part INTEGER NOT NULL,                 -- part within the payload
    parts INTEGER NOT NULL,                -- parts of that payload
    count INTEGER NOT NULL,                -- payloads of the operation
    kind TEXT NOT NULL,
    stamp INTEGER NOT NULL,
    said_ms INTEGER NOT NULL,
    private INTEGER NOT NULL,
    seal TEXT NOT NULL,                    -- over the whole payload
    text TEXT NOT NULL,
    turn_stamp INTEGER NOT NULL,
    turn_writer TEXT NOT NULL,
    turn_counter INTEGER NOT NULL,
    branch TEXT NOT NULL,
    key_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (session, writer, counter, digest, idx, part)
) WITHOUT ROWID;

-- Operations known to exist and not here. Written by the puller; a row goes when its dot arrives.
CREATE TABLE holes (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    next_ms INTEGER NOT NULL,
    explained INTEGER NOT NULL,            -- 1: its writer says that it is parked
    PRIMARY KEY (session, writer, counter)
) WITHOUT ROWID;

-- Removed items whose memories the server still has to forget. Written with an own pop or clear
-- (`by_*` names it: nothing is forgotten before that operation is acked) and by the audit.
CREATE TABLE forgets (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counter INTEGER NOT NULL,
    idx INTEGER NOT NULL,                  -- -1: the placeholder of a parked operation
    parts INTEGER NOT NULL,
    by_writer TEXT NOT NULL,
    by_counter INTEGER NOT NULL,
    PRIMARY KEY (session, writer, counter, idx)
) WITHOUT ROWID;

-- Confirmed pops whose claim on the server is under way or unanswered. Written by the claim.
CREATE TABLE claims (
    session INTEGER NOT NULL,
    writer TEXT NOT NULL,                  -- the item claimed
    counter INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    claimer TEXT NOT NULL,                 -- the writer (opening) that claims
    since_ms INTEGER NOT NULL,
    asked INTEGER NOT NULL,                -- 0: not asked yet; 1: perhaps; 2: another has it
    PRIMARY KEY (session, writer, counter, idx)
) WITHOUT ROWID;

-- When the next attempt may be made: session 0 is the server as a whole. Written by the
-- replicator on failure, deleted on success. A gate further away than its own pause is void
-- (the clock was moved).
CREATE TABLE gates (
    session INTEGER PRIMARY KEY,
    failures INTEGER NOT NULL,
    pause_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,                    -- unreachable, busy, denied
    reason TEXT NOT NULL,
    since_ms INTEGER NOT NULL
);

-- Facts of the file: `server` (base URL that acked refers to), `last_success_ms`, `last_ack_ms`,
-- `last_error`, `last_error_ms`; `salvage`: what became of the file that was here before, and
-- `retired:ID`: writer ids of that file, which must not be used again, and `rescued:...`: damaged
-- operations whose items were written again (recovery/copy_rows.py). By
-- session: the marks of imports, whose keys begin with `import:` (tables/import_marks.py), and of
-- audits, whose keys begin with `audit:` (tables/audit_state.py). `search_index`: the full-text
-- index is complete (tables/search_index.py).
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
"""
STATEMENTS = with_checks(DDL)
"""The statements that create the tables and indexes."""


def prepare(conn: sqlite3.Connection, path: str, *, search_index: bool = True) -> None:
    """Make the file a journal of the current format, or refuse it unchanged.

    Create the full-text index if ``search_index`` is true and SQLite has FTS5; drop it otherwise.

    Raises:
        JournalTooNew: a newer version wrote the file.
        JournalError: the file is another program's database.
    """
    try:
        _prepare(conn, path, search_index=search_index)
    except UnicodeDecodeError as error:
        # SQLite's message quotes the damaged schema, and Python cannot decode the message.
        raise sqlite3.DatabaseError("malformed database schema: it is no text") from error


def _prepare(conn: sqlite3.Connection, path: str, *, search_index: bool) -> None:
    search_index = search_index and index_table.is_available(conn)
    if identify(conn, path) and index_table.is_kept(conn) == search_index:
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have created the schema while this process waited for the lock.
        if not identify(conn, path):
            if _pragma(conn, "application_id") == APPLICATION_ID:
                migrate_file(conn, path)
            else:
                for statement in _statements():
                    conn.execute(statement)
                conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                conn.execute(f"PRAGMA user_version = {FORMAT}")
        index_table.switch(conn, search_index)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def migrate_file(conn: sqlite3.Connection, path: str) -> None:
    """Migrate a journal of an older format to the current format, in the open transaction."""
    migrate(conn, path, _pragma(conn, "user_version"), FORMAT, _statements())
    conn.execute(f"PRAGMA user_version = {FORMAT}")


def identify(conn: sqlite3.Connection, path: str) -> bool:
    """Return whether the file is a journal of the current format; False for an empty or older one.

    The function writes nothing, so a foreign or newer file is refused unchanged.

    Raises:
        JournalTooNew: a newer version wrote the file.
        JournalError: the file is another program's database.
        sqlite3.DatabaseError: the file is damaged.
    """
    application, version, tables, has_items = _header(conn)
    if application == APPLICATION_ID:
        if version > FORMAT:
            raise JournalTooNew(
                f"the journal {path} has format {version}, and this version of cached-session "
                f"reads formats up to {FORMAT}; the file was not changed; upgrade cached-session"
            )
        if version < 1:
            raise sqlite3.DatabaseError(f"malformed header: format {version} does not exist")
        # Before its release, format 3 had a table of items for some time.
        return version == FORMAT and not has_items
    if application != 0 or version != 0 or tables is not None:
        raise JournalError(
            f"{path} is a SQLite database of another program, not a journal; "
            "the file was not changed; pass another path"
        )
    return False


def _header(conn: sqlite3.Connection) -> tuple[int, int, object, bool]:
    """Return the application id, the version, a table name, and whether the table `items` exists,
    from one snapshot."""
    own = not conn.in_transaction
    if own:
        conn.execute("BEGIN")
    try:
        return (
            _pragma(conn, "application_id"),
            _pragma(conn, "user_version"),
            conn.execute("SELECT name FROM sqlite_master LIMIT 1").fetchone(),
            conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone() is not None,
        )
    finally:
        if own and conn.in_transaction:
            conn.execute("ROLLBACK")


def _pragma(conn: sqlite3.Connection, name: str) -> int:
    (value,) = conn.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _statements() -> list[str]:
    found, statement = [], ""
    for line in STATEMENTS.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement.strip())
            statement = ""
    return found
