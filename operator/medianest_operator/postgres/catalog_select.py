"""All questions about a catalog as one statement."""

from __future__ import annotations

from typing import LiteralString

from medianest_operator.postgres import catalog_extras
from medianest_operator.postgres.catalog_queries import SECTIONS, SINCE_15

# Two search paths in one statement. The names in it are resolved before it runs, in pg_catalog alone, so that nobody's
# operator or function in public takes the place of PostgreSQL's. What its first row sets holds while it runs: regclass
# and pg_get_* spell tables in public without their schema, and resolve nothing that is then called.
_SPELL_WITHOUT_PUBLIC: LiteralString = """
SELECT CASE WHEN pg_catalog.set_config('search_path', 'public', true) IS NULL THEN NULL ELSE '[]' END::json
"""


def _select(sections: tuple[LiteralString, ...]) -> LiteralString:
    return "\nUNION ALL\n".join(
        (
            _SPELL_WITHOUT_PUBLIC,
            *(f"SELECT coalesce((SELECT json_agg(q) FROM ({section}) q), '[]'::json)" for section in sections),
        )
    )


_EARLIER = _select((*SECTIONS, *catalog_extras.SECTIONS))
SELECT_CATALOG = _EARLIER.replace("\n       -- since 15\n", SINCE_15)


def catalog_query(server_version: int) -> LiteralString:
    """`SELECT_CATALOG` for a server that may be older.

    Args:
        server_version: as libpq has it, 150004.
    """
    query = SELECT_CATALOG if server_version >= 150000 else _EARLIER
    if server_version < 140000:
        # Columns have no compression of their own.
        query = query.replace("a.attcompression::text", "NULL::text")
    if server_version < 130000:
        collation: LiteralString = "(SELECT quote_ident(l.collname) FROM pg_collation l WHERE l.oid = a.attcollation)"
        query = query.replace("a.attcollation::regcollation::text", collation)
    return query
