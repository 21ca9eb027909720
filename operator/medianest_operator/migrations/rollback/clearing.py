"""What a restore puts its dump in place of: everything of the role's own, and nothing of anybody else's.

A database may hold what others made in it: a DBA's function, a pooler's lookup, a monitoring schema. It stays where it
is, and so does the schema around it; the dump's entries for it are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.backups.logical.toc import parse_entry
from medianest_operator.naming import JOURNAL_SCHEMA
from medianest_operator.postgres.catalog import Catalog

# The application's schemas: PostgreSQL's own and the journal are none.
_SCHEMAS: LiteralString = f"n.nspname NOT IN ('information_schema', '{JOURNAL_SCHEMA}') AND n.nspname !~ '^pg_'"


def _stands_alone(catalog: LiteralString) -> LiteralString:
    """Whether a row `o` of this catalog is neither an extension's nor a part of another object that goes with it: a
    range type's constructors, an identity column's sequence, a table's row type (PostgreSQL manual, pg_depend)."""
    return f"""NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass AND d.objid = o.oid
                              AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))"""


def _drop(
    what: LiteralString, catalog: LiteralString, name: LiteralString, schema: LiteralString, owner: LiteralString
) -> LiteralString:
    """A query for the statements that drop a catalog's objects."""
    return f"""
    SELECT format('DROP %s IF EXISTS %I.%s CASCADE', {what}, n.nspname, {name})
      FROM {catalog} o JOIN pg_namespace n ON n.oid = o.{schema}
     WHERE {_SCHEMAS} AND pg_has_role(o.{owner}, 'USAGE') AND {_stands_alone(catalog)}"""


_RELATION: LiteralString = """CASE o.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                                    WHEN 'S' THEN 'SEQUENCE' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END"""

# Each query makes statements, which are run before the next query looks. What can't be dropped ends the restore, and
# with it the transaction.
_CLEARING: Sequence[LiteralString] = (
    """
    SELECT format('DROP EXTENSION IF EXISTS %I CASCADE', extname) FROM pg_extension
     WHERE pg_has_role(extowner, 'USAGE')""",
    """
    SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication
     WHERE pg_has_role(pubowner, 'USAGE')""",
    # A dump sets them last and tells each table's own rights: what is made before mustn't get any by default.
    """
    SELECT DISTINCT format('ALTER DEFAULT PRIVILEGES%s REVOKE ALL ON %s FROM %s',
               ' IN SCHEMA ' || quote_ident(n.nspname),
               CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                                    WHEN 'T' THEN 'TYPES' ELSE 'SCHEMAS' END,
               CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
      FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) a
     WHERE pg_get_userbyid(d.defaclrole) = current_user AND a.grantee <> d.defaclrole""",
    "SELECT 'CREATE SCHEMA IF NOT EXISTS public AUTHORIZATION pg_database_owner'",
    _drop(_RELATION, "pg_class", "quote_ident(o.relname)", "relnamespace", "relowner")
    + " AND o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')",
    _drop("'OPERATOR CLASS'", "pg_opclass", "quote_ident(o.opcname) || ' USING ' || "
          "(SELECT quote_ident(a.amname) FROM pg_am a WHERE a.oid = o.opcmethod)", "opcnamespace", "opcowner"),
    _drop("'OPERATOR FAMILY'", "pg_opfamily", "quote_ident(o.opfname) || ' USING ' || "
          "(SELECT quote_ident(a.amname) FROM pg_am a WHERE a.oid = o.opfmethod)", "opfnamespace", "opfowner"),
    _drop("'OPERATOR'", "pg_operator", "o.oprname || '(' || CASE o.oprleft WHEN 0 THEN 'NONE' ELSE "
          "format_type(o.oprleft, NULL) END || ', ' || format_type(o.oprright, NULL) || ')'",
          "oprnamespace", "oprowner"),
    _drop("'ROUTINE'", "pg_proc", "quote_ident(o.proname) || '(' || pg_get_function_identity_arguments(o.oid) || ')'",
          "pronamespace", "proowner"),
    _drop("'TYPE'", "pg_type", "quote_ident(o.typname)", "typnamespace", "typowner"),
    _drop("'TEXT SEARCH CONFIGURATION'", "pg_ts_config", "quote_ident(o.cfgname)", "cfgnamespace", "cfgowner"),
    _drop("'TEXT SEARCH DICTIONARY'", "pg_ts_dict", "quote_ident(o.dictname)", "dictnamespace", "dictowner"),
    _drop("'CONVERSION'", "pg_conversion", "quote_ident(o.conname)", "connamespace", "conowner"),
    _drop("'COLLATION'", "pg_collation", "quote_ident(o.collname)", "collnamespace", "collowner"),
    # Without CASCADE, and only where nothing depends on it any more: what is left in one is somebody else's.
    f"""
    SELECT format('DROP SCHEMA %I', n.nspname) FROM pg_namespace n
     WHERE {_SCHEMAS} AND n.nspname <> 'public' AND pg_has_role(n.nspowner, 'USAGE')
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass AND d.objid = n.oid
                                                 AND d.deptype IN ('e', 'i'))
       AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid
                                                 AND d.classid <> 'pg_default_acl'::regclass)""",
)  # fmt: skip

_LARGE_OBJECTS: LiteralString = """
    SELECT format('SELECT lo_unlink(%s)', oid) FROM pg_largeobject_metadata WHERE pg_has_role(lomowner, 'USAGE')"""
UNLINK: LiteralString = "SELECT lo_unlink(oid) FROM pg_largeobject_metadata WHERE pg_has_role(lomowner, 'USAGE')"
"""Removes the role's own large objects."""


def clear(large_objects: bool) -> str:
    """The block that makes room for a dump.

    Args:
        large_objects: the dump holds them.
    """
    queries = (_LARGE_OBJECTS, *_CLEARING) if large_objects else _CLEARING
    return (
        "DO $clear$ DECLARE statement text; BEGIN"
        + "".join(
            f"\n  FOREACH statement IN ARRAY ARRAY({query}) LOOP EXECUTE statement; END LOOP;" for query in queries
        )
        + "\nEND $clear$"
    )


_CALL: Final = re.compile(r"CHECK .*\w\(", re.DOTALL)
_ROLES: LiteralString = "SELECT rolname::text, pg_has_role(oid, 'USAGE') FROM pg_catalog.pg_roles"
_DEPENDENTS: LiteralString = """
SELECT 'publication ' || quote_ident(p.pubname) || ' of ' || pg_get_userbyid(p.pubowner) || ' over '
       || r.prrelid::regclass
  FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
 WHERE NOT pg_has_role(p.pubowner, 'USAGE') AND pg_has_role(c.relowner, 'USAGE')
UNION
SELECT CASE v.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' ELSE 'table ' END || v.oid::regclass
       || ' of ' || pg_get_userbyid(v.relowner) || ' over ' || c.oid::regclass
  FROM pg_depend d JOIN pg_class c ON c.oid = d.refobjid AND d.refclassid = 'pg_class'::regclass
  LEFT JOIN pg_rewrite w ON w.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
  LEFT JOIN pg_constraint k ON k.oid = d.objid AND d.classid = 'pg_constraint'::regclass
  JOIN pg_class v ON v.oid = coalesce(w.ev_class, k.conrelid)
 WHERE c.relkind IN ('r', 'p', 'v', 'm') AND pg_has_role(c.relowner, 'USAGE') AND NOT pg_has_role(v.relowner, 'USAGE')
UNION
SELECT 'function ' || p.oid::regprocedure || ' of ' || pg_get_userbyid(p.proowner) || ' with ' || t.oid::regtype
  FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
  JOIN pg_type t ON t.oid = d.refobjid AND d.refclassid = 'pg_type'::regclass
 WHERE pg_has_role(t.typowner, 'USAGE') AND NOT pg_has_role(p.proowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM pg_depend i WHERE i.classid = 'pg_proc'::regclass AND i.objid = p.oid
                                             AND i.deptype IN ('e', 'i'))
UNION
SELECT 'right of ' || CASE a.grantee WHEN 0 THEN 'everybody' ELSE pg_get_userbyid(a.grantee) END || ' on ' || o.name
       || ', given by ' || pg_get_userbyid(a.grantor)
  FROM (SELECT c.oid::regclass::text, c.relowner, c.relacl FROM pg_class c
        UNION ALL SELECT c.oid::regclass || '.' || quote_ident(t.attname), c.relowner, t.attacl
                    FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid WHERE NOT t.attisdropped
        UNION ALL SELECT oid::regprocedure::text, proowner, proacl FROM pg_proc
        UNION ALL SELECT oid::regtype::text, typowner, typacl FROM pg_type
        UNION ALL SELECT quote_ident(nspname), nspowner, nspacl FROM pg_namespace WHERE nspname <> 'public'
       ) o(name, owner, acl) CROSS JOIN LATERAL aclexplode(o.acl) a
 WHERE pg_has_role(o.owner, 'USAGE') AND NOT pg_has_role(a.grantor, 'USAGE')
   AND pg_get_userbyid(a.grantor) <> session_user
 ORDER BY 1
"""


def _of_others(whose: LiteralString) -> LiteralString:
    """A query for what others built on objects of the role's own, and whose it is (PostgreSQL manual, pg_depend). What
    belongs to a table, as a default or a trigger does, is its owner's.

    Args:
        whose: a condition on a row `d` of pg_depend, about what it refers to.
    """
    return f"""
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' of ' || pg_get_userbyid(o.owner)
  FROM pg_depend d CROSS JOIN LATERAL (
       SELECT relowner FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid
       UNION ALL SELECT c.relowner FROM pg_attrdef a JOIN pg_class c ON c.oid = a.adrelid
                  WHERE d.classid = 'pg_attrdef'::regclass AND a.oid = d.objid
       UNION ALL SELECT coalesce(c.relowner, t.typowner) FROM pg_constraint k
                   LEFT JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_type t ON t.oid = k.contypid
                  WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
       UNION ALL SELECT c.relowner FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
                  WHERE d.classid = 'pg_trigger'::regclass AND g.oid = d.objid
       UNION ALL SELECT c.relowner FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class
                  WHERE d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid
       UNION ALL SELECT c.relowner FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
                  WHERE d.classid = 'pg_policy'::regclass AND p.oid = d.objid
       UNION ALL SELECT proowner FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid
       UNION ALL SELECT typowner FROM pg_type WHERE d.classid = 'pg_type'::regclass AND oid = d.objid
       UNION ALL SELECT oprowner FROM pg_operator WHERE d.classid = 'pg_operator'::regclass AND oid = d.objid
       UNION ALL SELECT opcowner FROM pg_opclass WHERE d.classid = 'pg_opclass'::regclass AND oid = d.objid
       UNION ALL SELECT stxowner FROM pg_statistic_ext
                  WHERE d.classid = 'pg_statistic_ext'::regclass AND oid = d.objid
       UNION ALL SELECT evtowner FROM pg_event_trigger WHERE d.classid = 'pg_event_trigger'::regclass AND oid = d.objid
       UNION ALL SELECT p.pubowner FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                  WHERE d.classid = 'pg_publication_rel'::regclass AND r.oid = d.objid
       ) o(owner)
 WHERE d.deptype IN ('n', 'a') AND NOT pg_has_role(o.owner, 'USAGE') AND {whose}
   -- A range type's constructors belong to the bootstrap superuser, whoever made the type.
   AND NOT EXISTS (SELECT FROM pg_depend i
                    WHERE i.classid = d.classid AND i.objid = d.objid AND i.deptype IN ('e', 'i'))
 ORDER BY 1"""


def _on_own(catalog: LiteralString, prefix: LiteralString) -> LiteralString:
    """Whether a row `d` of pg_depend refers to an object of the role's own in this catalog."""
    return f"""EXISTS (SELECT FROM {catalog} o JOIN pg_namespace n ON n.oid = o.{prefix}namespace
                WHERE d.refclassid = '{catalog}'::regclass AND o.oid = d.refobjid
                  AND {_SCHEMAS} AND pg_has_role(o.{prefix}owner, 'USAGE'))"""


# Beside what `_DEPENDENTS` has: columns, defaults, checks, indexes, triggers and the like that use a type or a function
# of the role's own, or of an extension of its own.
_BUILT: LiteralString = _of_others(f"""(
       {_on_own("pg_type", "typ")} OR {_on_own("pg_proc", "pro")} OR {_on_own("pg_class", "rel")}
       OR {_on_own("pg_operator", "opr")} OR {_on_own("pg_collation", "coll")}
       OR EXISTS (SELECT FROM pg_depend e JOIN pg_extension x ON x.oid = e.refobjid
                   WHERE e.refclassid = 'pg_extension'::regclass AND e.classid = d.refclassid AND e.objid = d.refobjid
                     AND e.deptype = 'e' AND pg_has_role(x.extowner, 'USAGE')))""")
_BUILT_ON_RELATION: LiteralString = _of_others(
    """((d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%(name)s))
        OR (d.refclassid = 'pg_type'::regclass
            AND d.refobjid IN (SELECT oid FROM pg_type WHERE typrelid = to_regclass(%(name)s))))"""
)
# Schemas that the clearing leaves: others' own, and those with something of others in them.
_KEPT_SCHEMAS: LiteralString = f"""
SELECT n.nspname::text FROM pg_namespace n
 WHERE {_SCHEMAS} AND (NOT pg_has_role(n.nspowner, 'USAGE') OR EXISTS (
       SELECT FROM pg_depend d CROSS JOIN LATERAL (
              SELECT relowner FROM pg_class WHERE oid = d.objid AND d.classid = 'pg_class'::regclass
              UNION ALL SELECT proowner FROM pg_proc WHERE oid = d.objid AND d.classid = 'pg_proc'::regclass
              UNION ALL SELECT typowner FROM pg_type WHERE oid = d.objid AND d.classid = 'pg_type'::regclass
              UNION ALL SELECT extowner FROM pg_extension WHERE oid = d.objid AND d.classid = 'pg_extension'::regclass
              UNION ALL SELECT oprowner FROM pg_operator WHERE oid = d.objid AND d.classid = 'pg_operator'::regclass
              UNION ALL SELECT collowner FROM pg_collation WHERE oid = d.objid AND d.classid = 'pg_collation'::regclass
              ) o(owner)
        WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = n.oid AND NOT pg_has_role(o.owner, 'USAGE')
          -- A range type's constructors belong to the bootstrap superuser, whoever made the type.
          AND NOT EXISTS (SELECT FROM pg_depend i WHERE i.classid = d.classid AND i.objid = d.objid
                                                    AND i.deptype = 'i')))
"""


def dependents(connection: Connection[Any], *, on_rows: bool = False) -> list[str]:
    """What others built on the role's own tables, in words: it would go with them, and no restore could make it again.

    Args:
        on_rows: only what stands in the way of bringing back rows: foreign keys.

    Raises:
        psycopg.Error: as the server says.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    found = [row[0] for row in cursor.execute(_DEPENDENTS).fetchall()]
    if on_rows:
        return [line for line in found if line.startswith("table ")]
    return found or [row[0] for row in cursor.execute(_BUILT).fetchall()]


def built_on(connection: Connection[Any], relation: str) -> list[str]:
    """What others built on one table or view, in words.

    Raises:
        psycopg.Error: as the server says.
    """
    rows = connection.cursor(row_factory=tuple_row).execute(_BUILT_ON_RELATION, {"name": relation}).fetchall()
    return [row[0] for row in rows]


def own_roles(connection: Connection[Any]) -> list[str]:
    """The roles whose objects are the run's own: those with whose rights it acts, and the one that it logs in as.

    Raises:
        psycopg.Error: as the server says.
    """
    query = "SELECT rolname::text FROM pg_catalog.pg_roles WHERE pg_has_role(oid, 'USAGE') OR rolname = session_user"
    return [row[0] for row in connection.cursor(row_factory=tuple_row).execute(query).fetchall()]


def own_entries(connection: Connection[Any], before: Catalog) -> Callable[[Sequence[str]], Iterable[str]]:
    """Takes the lines of a dump's table of contents that are to be restored here.

    The comment of an extension belongs to its owner, and comes with the extension anyway. A function in a CHECK may
    look at other tables (PostgreSQL manual, Constraints, advises against that): the rows that it checks come last.

    Args:
        before: what is restored.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    roles: dict[str, bool] = dict(cursor.execute(_ROLES).fetchall())
    kept = {row[0] for row in cursor.execute(_KEPT_SCHEMAS).fetchall()}

    checks = (item for item in before.of_kind("constraint") if _CALL.match(str(item.attributes["definition"])))
    checked = {item.table.replace('"', "") for item in checks}

    def filled_by(line: str) -> str:
        """The table whose rows a line stands for; empty where it is something else."""
        entry = parse_entry(line)
        if entry is None or entry.kind != "TABLE DATA":
            return ""
        name = entry.name(roles)
        return name if entry.schema == "public" else f"{entry.schema}.{name}"

    def wanted(line: str) -> bool:
        entry = parse_entry(line)
        if entry is None:
            return True
        if entry.is_comment_on_extension:
            return False
        if entry.kind == "SCHEMA" and entry.name(roles) in kept:
            return False
        return roles.get(entry.owner(roles), True)

    def chosen(lines: Sequence[str]) -> Iterable[str]:
        kept = [line for line in lines if wanted(line)]
        late = [line for line in kept if filled_by(line) in checked]
        early = [line for line in kept if line not in late]
        place = max((number for number, line in enumerate(early, start=1) if filled_by(line)), default=None)
        return kept if place is None else [*early[:place], *late, *early[place:]]

    return chosen
