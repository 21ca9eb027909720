"""All questions about a catalog as one statement."""

from __future__ import annotations

from typing import LiteralString

from medianest_operator.postgres import catalog_extras
from medianest_operator.postgres.catalog_queries import PUBLIC, SECTIONS, SINCE_15, USER_SCHEMA

# Two search paths in one statement. The names in it are resolved before it runs, in pg_catalog alone, so that nobody's
# operator or function in public takes the place of PostgreSQL's. What its first value sets holds while the others are
# worked out: regclass and pg_get_* spell tables in public without their schema, and resolve nothing that is called.
_SPELL_WITHOUT_PUBLIC: LiteralString = "pg_catalog.set_config('search_path', 'public', true)"


def _select(sections: tuple[LiteralString, ...]) -> LiteralString:
    # One value rather than a row a section: UNION ALL takes twice the planning.
    values = (_SPELL_WITHOUT_PUBLIC, *(f"(SELECT json_agg(q) FROM ({section}) q)" for section in sections))
    return f"SELECT json_build_array({', '.join(values)})"


_EARLIER = _select((*SECTIONS, *catalog_extras.SECTIONS))
SELECT_CATALOG = _EARLIER.replace("\n       -- since 15\n", SINCE_15)


# Which version of its row each definition has that PostgreSQL spells as it is at the moment, not as a snapshot has it.
SELECT_VERSIONS: LiteralString = f"""
SELECT CASE p.prokind WHEN 'p' THEN 'procedure ' WHEN 'a' THEN 'aggregate ' ELSE 'function ' END || {PUBLIC}
       || quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.xmin::text
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {USER_SCHEMA}
 UNION ALL
SELECT CASE c.relkind WHEN 'm' THEN 'materialized view ' ELSE 'view ' END || {PUBLIC} || quote_ident(c.relname),
       r.xmin::text
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('v', 'm') AND r.rulename = '_RETURN' AND {USER_SCHEMA}
 UNION ALL
SELECT 'table ' || {PUBLIC} || quote_ident(c.relname) || ': index ' || quote_ident(i.relname), i.xmin::text
  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {USER_SCHEMA}
"""


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
