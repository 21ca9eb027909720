"""The questions that `catalog.py` asks the server: one for each kind of object (`catalog_extras` has more).

Each gives rows with `kind`, `owner_table` (the table that the object belongs to, if any), `name` and the attributes
that make two objects equal. Object identifiers, physical order and statistics are left out on purpose: they differ
between servers that hold the same schema. Objects of extensions are left out too; the extension itself stands for them.
"""

from __future__ import annotations

from typing import LiteralString

# Names are spelled as in SQL, and without the schema in `public`, so that they read well in messages.
PUBLIC: LiteralString = "CASE WHEN n.nspname = 'public' THEN '' ELSE quote_ident(n.nspname) || '.' END"
USER_SCHEMA: LiteralString = (
    # pg_catalog, pg_toast, pg_temp_*; and the operator's journal (naming.JOURNAL_SCHEMA).
    "n.nspname NOT IN ('information_schema', 'medianest_operator') AND n.nspname !~ '^pg_'"
)


def not_of_extension(catalog: LiteralString, alias: LiteralString) -> LiteralString:
    return (
        f"NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = '{catalog}'::regclass"
        f" AND d.objid = {alias}.oid AND d.deptype = 'e')"
    )


TABLES: LiteralString = f"""
SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                      ELSE 'table' END AS kind,
       NULL AS owner_table, {PUBLIC} || quote_ident(c.relname) AS name,
       pg_get_userbyid(c.relowner) AS owner, c.relpersistence AS persistence, c.relkind = 'p' AS partitioned,
       c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security,
       c.relreplident AS replica_identity, c.reloptions AS options,
       pg_get_expr(c.relpartbound, c.oid) AS partition_bound,
       CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key,
       (SELECT array_agg(i.inhparent::regclass::text ORDER BY i.inhseqno)
          FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents,
       CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END AS definition,
       (SELECT array_prepend(quote_ident(s.srvname), f.ftoptions)
          FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = c.oid) AS foreign
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {USER_SCHEMA} AND {not_of_extension("pg_class", "c")}
"""

# The position counts live columns only: a dropped one leaves a gap in attnum that no dump brings back. pg_attver is the
# server's own mark on each column (seen on 15.20, not on 15.18): it is another one for each table that is made.
COLUMNS: LiteralString = f"""
SELECT 'column' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(a.attname) AS name,
       row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum) AS position,
       format_type(a.atttypid, a.atttypmod) AS type, NOT a.attnotnull AS nullable,
       pg_get_expr(d.adbin, d.adrelid) AS "default",
       nullif(a.attidentity::text, '') AS identity, nullif(a.attgenerated::text, '') AS generated,
       CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END AS collation,
       CASE WHEN a.attstorage <> t.typstorage THEN a.attstorage END AS storage,
       nullif(a.attcompression::text, '') AS compression,
       nullif(a.attstattarget, -1) AS statistics_target,
       (SELECT array_agg(o ORDER BY o) FROM unnest(a.attoptions) o WHERE NOT starts_with(o, 'pg_attver=')) AS options
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_type t ON t.oid = a.atttypid
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {USER_SCHEMA}
   AND {not_of_extension("pg_class", "c")}
"""

CONSTRAINTS: LiteralString = f"""
SELECT 'constraint' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(k.conname) AS name,
       k.contype AS type, pg_get_constraintdef(k.oid) AS definition, k.convalidated AS validated,
       k.condeferrable AS deferrable, k.condeferred AS deferred,
       (SELECT array_agg(a.attname ORDER BY u.ord) FROM unnest(k.conkey) WITH ORDINALITY u(num, ord)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS columns,
       CASE WHEN k.confrelid <> 0 THEN k.confrelid::regclass::text END AS ref_table,
       (SELECT array_agg(a.attname ORDER BY u.ord) FROM unnest(k.confkey) WITH ORDINALITY u(num, ord)
          JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num) AS ref_columns,
       CASE k.confdeltype WHEN 'a' THEN 'NO ACTION' WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE'
                          WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' END AS on_delete,
       CASE k.confupdtype WHEN 'a' THEN 'NO ACTION' WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE'
                          WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' END AS on_update
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype <> 't' AND {USER_SCHEMA} AND {not_of_extension("pg_class", "c")}
"""

INDEXES: LiteralString = f"""
SELECT 'index' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(i.relname) AS name,
       m.amname AS method, x.indisunique AS "unique", x.indisprimary AS "primary",
       x.indisvalid AND x.indisready AND x.indislive AS valid,
       x.indisclustered AS clustered, x.indisreplident AS replica_identity,
       (SELECT array_agg(coalesce(a.attname, pg_get_indexdef(x.indexrelid, u.ord::int, false)) ORDER BY u.ord)
          FROM unnest(x.indkey::int2[]) WITH ORDINALITY u(num, ord)
          LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = u.num) AS columns,
       pg_get_expr(x.indpred, x.indrelid) AS predicate, pg_get_indexdef(x.indexrelid) AS definition
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam
  JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_class", "c")}
"""

# Where a sequence stands is data, not schema.
SEQUENCES: LiteralString = f"""
SELECT 'sequence' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(c.relname) AS name,
       pg_get_userbyid(c.relowner) AS owner, format_type(s.seqtypid, NULL) AS type, s.seqstart AS start,
       s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum, s.seqcache AS cache, s.seqcycle AS cycle,
       c.relpersistence AS persistence,
       (SELECT d.refobjid::regclass::text || '.' || quote_ident(a.attname)
          FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')
           AND d.refclassid = 'pg_class'::regclass) AS owned_by
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_class", "c")}
"""

# A range type brings its constructors, which belong to the bootstrap superuser whoever makes it.
_NO_CONSTRUCTOR: LiteralString = (
    "NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid"
    " AND d.refclassid = 'pg_type'::regclass AND d.deptype = 'i')"
)

FUNCTIONS: LiteralString = f"""
SELECT CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END AS kind,
       NULL AS owner_table,
       {PUBLIC} || quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name,
       pg_get_userbyid(p.proowner) AS owner, pg_get_function_result(p.oid) AS result,
       CASE WHEN p.prokind IN ('f', 'p', 'w') THEN pg_get_functiondef(p.oid) END AS definition,
       (SELECT ARRAY[a.aggkind::text, a.aggtransfn::regproc::text, format_type(a.aggtranstype, NULL), a.agginitval,
                     a.aggfinalfn::regproc::text, a.aggcombinefn::regproc::text, a.aggserialfn::regproc::text,
                     a.aggdeserialfn::regproc::text, a.aggmtransfn::regproc::text, a.aggminvtransfn::regproc::text,
                     a.aggmfinalfn::regproc::text, CASE WHEN a.aggsortop <> 0 THEN a.aggsortop::regoperator::text END,
                     a.aggmtranstype::regtype::text, a.aggminitval, p.proparallel::text]
          FROM pg_aggregate a WHERE a.aggfnoid = p.oid) AS aggregate
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_proc", "p")} AND {_NO_CONSTRUCTOR}
"""

TRIGGERS: LiteralString = f"""
SELECT 'trigger' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(t.tgname) AS name,
       t.tgenabled AS enabled, pg_get_triggerdef(t.oid) AS definition
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT t.tgisinternal AND {USER_SCHEMA}
"""

# Views are rules inside; their definition is taken above.
RULES: LiteralString = f"""
SELECT 'rule' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(r.rulename) AS name,
       r.ev_enabled AS enabled, pg_get_ruledef(r.oid) AS definition
  FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.rulename <> '_RETURN' AND {USER_SCHEMA}
"""

POLICIES: LiteralString = f"""
SELECT 'policy' AS kind, {PUBLIC} || quote_ident(c.relname) AS owner_table, quote_ident(p.polname) AS name,
       p.polcmd AS command, p.polpermissive AS permissive,
       (SELECT array_agg(r.name ORDER BY r.name)
          FROM (SELECT CASE o WHEN 0 THEN 'public' ELSE pg_get_userbyid(o)::text END
                  FROM unnest(p.polroles) o) r(name)) AS roles,
       pg_get_expr(p.polqual, p.polrelid) AS "using", pg_get_expr(p.polwithcheck, p.polrelid) AS "check"
  FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE {USER_SCHEMA}
"""

# A table's own row type is the table.
TYPES: LiteralString = f"""
SELECT CASE t.typtype WHEN 'e' THEN 'enum type' WHEN 'd' THEN 'domain' WHEN 'c' THEN 'composite type'
                      WHEN 'r' THEN 'range type' WHEN 'b' THEN 'base type' ELSE 'shell type' END AS kind,
       NULL AS owner_table, {PUBLIC} || quote_ident(t.typname) AS name, pg_get_userbyid(t.typowner) AS owner,
       (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) AS labels,
       CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END AS base,
       t.typnotnull AS not_null, t.typdefault AS "default",
       (SELECT array_agg(quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid) ORDER BY k.conname)
          FROM pg_constraint k WHERE k.contypid = t.oid) AS constraints,
       (SELECT array_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum)
          FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS attributes,
       (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid) AS subtype,
       CASE WHEN t.typtype = 'b'
            THEN ARRAY[t.typinput::regproc::text, t.typoutput::regproc::text, t.typreceive::regproc::text,
                       t.typsend::regproc::text, t.typlen::text, t.typalign::text, t.typstorage::text,
                       t.typcategory::text, t.typispreferred::text, t.typdelim::text] END AS representation
  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
 WHERE (t.typtype IN ('e', 'd', 'c', 'r') OR (t.typtype = 'p' AND NOT t.typisdefined)
        -- Every type brings an array type with it.
        OR (t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type a WHERE a.typarray = t.oid)))
   AND {USER_SCHEMA}
   AND (t.typrelid = 0 OR EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
   AND {not_of_extension("pg_type", "t")}
"""

STATISTICS: LiteralString = f"""
SELECT 'statistics object' AS kind, s.stxrelid::regclass::text AS owner_table,
       {PUBLIC} || quote_ident(s.stxname) AS name, pg_get_statisticsobjdef(s.oid) AS definition
  FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
 WHERE {USER_SCHEMA}
"""

EXTENSIONS: LiteralString = """
SELECT 'extension' AS kind, NULL AS owner_table, e.extname AS name, e.extversion AS version, n.nspname AS schema
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
"""

SCHEMAS: LiteralString = f"""
SELECT 'schema' AS kind, NULL AS owner_table, quote_ident(n.nspname) AS name, pg_get_userbyid(n.nspowner) AS owner
  FROM pg_namespace n
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_namespace", "n")}
"""

# 16384 is the first identifier of an object that initdb didn't make.
COMMENTS: LiteralString = """
SELECT 'comment' AS kind, NULL AS owner_table, i.type || ' ' || i.identity AS name, d.description AS text
  FROM pg_description d, pg_identify_object(d.classoid, d.objoid, d.objsubid) i
 WHERE d.objoid >= 16384 AND i.identity IS NOT NULL
   AND NOT EXISTS (SELECT FROM pg_depend e
                    WHERE e.classid = d.classoid AND e.objid = d.objoid AND e.deptype = 'e')
   AND d.classoid <> 'pg_extension'::regclass AND i.schema IS DISTINCT FROM 'medianest_operator'
   AND NOT (i.type = 'schema' AND i.name = 'medianest_operator')
"""

PUBLICATIONS: LiteralString = """
SELECT 'publication' AS kind, NULL AS owner_table, quote_ident(p.pubname) AS name,
       p.puballtables AS all_tables, p.pubinsert AS "insert", p.pubupdate AS "update", p.pubdelete AS "delete",
       p.pubtruncate AS "truncate",
       (SELECT array_agg(r.prrelid::regclass::text ORDER BY r.prrelid::regclass::text)
          FROM pg_publication_rel r WHERE r.prpubid = p.oid) AS tables,
       pg_get_userbyid(p.pubowner) AS owner, to_jsonb(p) ->> 'pubviaroot' AS via_root
       -- since 15
  FROM pg_publication p
"""
SINCE_15: LiteralString = """,
       (SELECT array_agg(quote_ident(n.nspname) ORDER BY n.nspname) FROM pg_publication_namespace s
          JOIN pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = p.oid) AS schemas,
       (SELECT array_agg(concat_ws(' ', r.prrelid::regclass,
                         '(' || (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                                  WHERE a.attrelid = r.prrelid AND a.attnum = ANY(r.prattrs)) || ')',
                         'WHERE ' || pg_get_expr(r.prqual, r.prrelid)) ORDER BY r.prrelid::regclass::text)
          FROM pg_publication_rel r
         WHERE r.prpubid = p.oid AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)) AS parts
"""

# The built-in rights of an object without its own list are spelled out, so that they equal the same rights granted.
GRANTS: LiteralString = f"""
SELECT 'grants' AS kind, NULL AS owner_table, g.name,
       array_agg(g.grantee || ': ' || g.rights ORDER BY g.grantee) AS rights
  FROM (SELECT o.name, CASE a.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(a.grantee)::text END AS grantee,
               string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN ' (grantable)' ELSE '' END, ', '
                          ORDER BY a.privilege_type) AS rights
          FROM (SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' ELSE 'table ' END
                       || {PUBLIC} || quote_ident(c.relname),
                       coalesce(c.relacl,
                                acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner))
                  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND {USER_SCHEMA}
                   AND {not_of_extension("pg_class", "c")}
                UNION ALL
                SELECT 'column ' || {PUBLIC} || quote_ident(c.relname) || '.' || quote_ident(t.attname), t.attacl
                  FROM pg_attribute t
                  JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE t.attacl IS NOT NULL AND NOT t.attisdropped AND {USER_SCHEMA}
                UNION ALL
                SELECT 'function ' || p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
                  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                 WHERE {USER_SCHEMA} AND {not_of_extension("pg_proc", "p")} AND {_NO_CONSTRUCTOR}
                UNION ALL
                SELECT 'schema ' || quote_ident(n.nspname), coalesce(n.nspacl, acldefault('n', n.nspowner))
                  FROM pg_namespace n WHERE {USER_SCHEMA}
                UNION ALL
                SELECT 'type ' || t.oid::regtype::text, t.typacl
                  FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
                 WHERE t.typacl IS NOT NULL AND {USER_SCHEMA}
                UNION ALL
                SELECT 'database', coalesce(b.datacl, acldefault('d', b.datdba))
                  FROM pg_database b WHERE b.datname = current_database()
                UNION ALL
                SELECT 'defaults for ' || pg_get_userbyid(f.defaclrole) || coalesce(' in ' || n.nspname, '')
                       || ' ' || f.defaclobjtype::text, f.defaclacl
                  FROM pg_default_acl f LEFT JOIN pg_namespace n ON n.oid = f.defaclnamespace
               ) o(name, acl), aclexplode(o.acl) a
         GROUP BY o.name, a.grantee) g
 GROUP BY g.name
"""

# What the operator sets while a volume is full, and takes back, is nobody's definition (`read_only`); its mark tells
# whether the database had the setting before.
SETTINGS: LiteralString = """
SELECT 'settings' AS kind, NULL AS owner_table,
       concat_ws(' ', CASE WHEN s.setdatabase = 0 THEN 'cluster' ELSE 'database' END,
                 CASE WHEN s.setrole <> 0 THEN 'role ' || pg_get_userbyid(s.setrole) END) AS name,
       (SELECT array_agg(v ORDER BY v) FROM unnest(o.own) v) AS values
  FROM pg_db_role_setting s,
       LATERAL (SELECT array_agg(v) FROM unnest(s.setconfig) v
                 WHERE split_part(v, '=', 1) <> 'medianest.read_only_since'
                   AND NOT (v = 'default_transaction_read_only=on'
                            AND EXISTS (SELECT FROM unnest(s.setconfig) m
                                         WHERE split_part(m, '=', 1) = 'medianest.read_only_since'
                                           AND right(m, 3) <> ' on'))) o(own)
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) AND o.own IS NOT NULL
"""

SECTIONS: tuple[LiteralString, ...] = (
    TABLES,
    COLUMNS,
    CONSTRAINTS,
    INDEXES,
    SEQUENCES,
    FUNCTIONS,
    TRIGGERS,
    RULES,
    POLICIES,
    TYPES,
    STATISTICS,
    EXTENSIONS,
    SCHEMAS,
    COMMENTS,
    PUBLICATIONS,
    GRANTS,
    SETTINGS,
)

SET_SEARCH_PATH: LiteralString = """
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
       pg_catalog.set_config('timezone', 'UTC', true), pg_catalog.set_config('datestyle', 'ISO', true),
       pg_catalog.set_config('intervalstyle', 'postgres', true), pg_catalog.set_config('bytea_output', 'hex', true),
       pg_catalog.set_config('standard_conforming_strings', 'on', true),
       pg_catalog.set_config('extra_float_digits', '1', true),
       pg_catalog.set_config('quote_all_identifiers', 'off', true)
"""

# Every definition is a row of these catalogs, and another version of the row whenever it changes. VACUUM and ANALYZE
# write their figures into the row in place, which leaves its version alone.
SELECT_TRACES: LiteralString = """
SELECT pg_catalog.md5(pg_catalog.string_agg(t.trace, ',' ORDER BY t.trace)),
       (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', c.oid, pg_catalog.pg_stat_get_tuples_inserted(c.oid),
               pg_catalog.pg_stat_get_tuples_updated(c.oid), pg_catalog.pg_stat_get_tuples_deleted(c.oid)), ','
               ORDER BY c.oid)
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND (n.nspname = 'medianest_operator' OR c.relname = '_prisma_migrations')),
       EXISTS (SELECT FROM pg_catalog.pg_locks l
                WHERE l.locktype = 'virtualxid' AND l.pid <> pg_catalog.pg_backend_pid())
  FROM (
    SELECT pg_catalog.concat_ws(':', 'c', c.oid, c.xmin) AS trace FROM pg_catalog.pg_class c
     WHERE c.relnamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, 'pg_toast'::pg_catalog.regnamespace,
                                  'information_schema'::pg_catalog.regnamespace)
    UNION ALL SELECT pg_catalog.concat_ws(':', 'a', a.attrelid, a.attnum, a.xmin) FROM pg_catalog.pg_attribute a
                JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
               WHERE c.relnamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, 'pg_toast'::pg_catalog.regnamespace,
                                            'information_schema'::pg_catalog.regnamespace)
    UNION ALL SELECT pg_catalog.concat_ws(':', 'd', oid, xmin) FROM pg_catalog.pg_attrdef
    UNION ALL SELECT pg_catalog.concat_ws(':', 'i', indexrelid, xmin) FROM pg_catalog.pg_index WHERE indexrelid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'k', oid, xmin) FROM pg_catalog.pg_constraint WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'p', oid, xmin) FROM pg_catalog.pg_proc WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 't', oid, xmin) FROM pg_catalog.pg_trigger
    UNION ALL SELECT pg_catalog.concat_ws(':', 'y', oid, xmin) FROM pg_catalog.pg_type WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'e', oid, xmin) FROM pg_catalog.pg_enum
    UNION ALL SELECT pg_catalog.concat_ws(':', 'o', oid, xmin) FROM pg_catalog.pg_policy
    UNION ALL SELECT pg_catalog.concat_ws(':', 'r', oid, xmin) FROM pg_catalog.pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'n', oid, xmin) FROM pg_catalog.pg_namespace
    UNION ALL SELECT pg_catalog.concat_ws(':', 'x', oid, xmin) FROM pg_catalog.pg_extension
    UNION ALL SELECT pg_catalog.concat_ws(':', 's', oid, xmin) FROM pg_catalog.pg_statistic_ext
    UNION ALL SELECT pg_catalog.concat_ws(':', 'u', oid, xmin) FROM pg_catalog.pg_publication
    UNION ALL SELECT pg_catalog.concat_ws(':', 'v', oid, xmin) FROM pg_catalog.pg_publication_rel
    UNION ALL SELECT pg_catalog.concat_ws(':', 'q', objid, refobjid, refobjsubid, deptype) FROM pg_catalog.pg_depend
               WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND deptype IN ('a', 'i')
                 AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'm', objoid, objsubid, xmin) FROM pg_catalog.pg_description
               WHERE objoid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'h', inhrelid, inhparent, inhseqno) FROM pg_catalog.pg_inherits
    UNION ALL SELECT pg_catalog.concat_ws(':', 'A', oid, xmin) FROM pg_catalog.pg_default_acl
    UNION ALL SELECT pg_catalog.concat_ws(':', 'B', oid, xmin) FROM pg_catalog.pg_operator WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'C', oid, xmin) FROM pg_catalog.pg_opclass WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'D', oid, xmin) FROM pg_catalog.pg_opfamily WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'E', oid, xmin) FROM pg_catalog.pg_collation WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'F', oid, xmin) FROM pg_catalog.pg_conversion WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'G', oid, xmin) FROM pg_catalog.pg_ts_config WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'H', oid, xmin) FROM pg_catalog.pg_ts_dict WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'I', oid, xmin) FROM pg_catalog.pg_cast WHERE oid >= 16384
    UNION ALL SELECT pg_catalog.concat_ws(':', 'J', oid, xmin) FROM pg_catalog.pg_event_trigger
    UNION ALL SELECT pg_catalog.concat_ws(':', 'K', oid, xmin) FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT pg_catalog.concat_ws(':', 'L', oid, rolname) FROM pg_catalog.pg_roles WHERE oid >= 16384
) t
"""
