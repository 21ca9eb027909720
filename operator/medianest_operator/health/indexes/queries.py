"""What is asked of the catalogs about indexes.

Every query runs as a login that owns nothing: it reads catalogs, locks and counters, no table. Names are found in
`pg_catalog` alone (`postgres.sessions`, and `reading` for other connections). No relation is locked, so that no answer
waits for a migration: sizes are those of `pg_class.relpages`, as the last VACUUM, ANALYZE or CREATE INDEX left them.
"""

from __future__ import annotations

from typing import LiteralString

# The application's schema; other schemas are other people's.
_APPLICATION: LiteralString = """
     c.relnamespace = to_regnamespace('public') AND NOT EXISTS (
       SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""

_MOST: LiteralString = "2000"
MOST = int(_MOST)
"""Indexes that are looked at, and foreign keys, and constraints: whoever may make them decides how many there are."""

# A table's overflow has an index, too, which REINDEX TABLE CONCURRENTLY rebuilds.
_FOUND: LiteralString = f"""
SELECT x.indexrelid, x.indisvalid, i.relname, c.oid AS table_oid
  FROM pg_index x
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_class r ON r.oid = x.indrelid
  LEFT JOIN pg_class w ON w.reltoastrelid = r.oid AND r.relkind = 't'
  JOIN pg_class c ON c.oid = coalesce(w.oid, r.oid)
 WHERE {_APPLICATION} AND (r.relkind <> 't' OR NOT x.indisvalid)
"""

# An index is worked on while a session holds a lock on it that nobody takes who only reads or writes: REINDEX
# CONCURRENTLY and DROP INDEX CONCURRENTLY keep one for as long as they take. CREATE INDEX CONCURRENTLY keeps one on the
# table alone; who that is pg_stat_progress_create_index says also to a login that isn't shown the rest of its row
# (PostgreSQL manual, 13.3.1 and 28.4.2). Of a table's indexes only the newest can be that one: the next has to wait.
_INDEXES: LiteralString = f"""
WITH found AS MATERIALIZED ({_FOUND}), locks AS MATERIALIZED (
  SELECT l.relation, l.mode, l.pid FROM pg_locks l
   WHERE l.locktype = 'relation' AND l.granted
     AND l.database = (SELECT b.oid FROM pg_database b WHERE b.datname = current_database())
     AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'AccessExclusiveLock'))
SELECT coalesce(json_agg(q ORDER BY q.name), '[]'::json) FROM (
SELECT x.indexrelid::int8 AS oid, concat(x.indexrelid, ':', i.xmin) AS stamp,
       i.relname AS name, format('%%I.%%I', n.nspname, i.relname) AS identifier,
       x.indrelid::int8 AS table_oid, c.relname AS table, format('%%I.%%I', o.nspname, c.relname) AS table_identifier,
       i.relkind = 'I' AS partitioned,
       (SELECT h.inhparent::int8 FROM pg_inherits h WHERE h.inhrelid = x.indexrelid) AS parent,
       m.amname AS method, x.indisunique AS unique, x.indnullsnotdistinct AS nulls_not_distinct,
       x.indisprimary AS primary, x.indisexclusion AS exclusion, x.indimmediate AS immediate,
       x.indisclustered AS clustered, x.indisreplident AS replica_identity,
       x.indisvalid AS valid, x.indisready AS ready, x.indislive AS live,
       (SELECT json_agg(json_build_object(
                 'column', k.num,
                 'definition', pg_get_indexdef(x.indexrelid, k.ord::int, false),
                 'rule', concat_ws(' ', (x.indclass::oid[])[k.ord - 1], (x.indcollation::oid[])[k.ord - 1],
                                   (x.indoption::int2[])[k.ord - 1], a.attoptions),
                 'collation', coalesce((x.indcollation::oid[])[k.ord - 1], 0)::int8,
                 'family', (SELECT s.opcfamily::int8 FROM pg_opclass s WHERE s.oid = (x.indclass::oid[])[k.ord - 1]),
                 'length', a.attlen, 'align', a.attalign,
                 -- Whose statistics tell how wide it is: an expression has its own.
                 'counted', CASE WHEN k.num = 0 THEN json_build_array(i.relname, a.attname)
                                 ELSE json_build_array(c.relname, t.attname) END) ORDER BY k.ord)
          FROM unnest(x.indkey::int2[]) WITH ORDINALITY k(num, ord)
          JOIN pg_attribute a ON a.attrelid = x.indexrelid AND a.attnum = k.ord
          LEFT JOIN pg_attribute t ON t.attrelid = x.indrelid AND t.attnum = k.num) AS columns,
       x.indnkeyatts AS width,
       pg_get_expr(x.indpred, x.indrelid) AS predicate, i.reloptions AS options,
       CASE WHEN h.oid IS NOT NULL THEN
         json_build_object('name', quote_ident(h.conname), 'type', h.contype, 'deferrable', h.condeferrable)
       END AS constraint,
       EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype = 'f') AS referenced,
       pg_get_indexdef(x.indexrelid) AS definition,
       i.relpages AS pages, i.reltuples AS rows,
       ARRAY(SELECT DISTINCT e.refobjid::int8 FROM pg_depend e
              WHERE e.classid = 'pg_class'::regclass AND e.objid = x.indexrelid
                AND e.refclassid = 'pg_collation'::regclass
             -- What an expression or a predicate works out of a column may follow the column's collation.
             UNION SELECT a.attcollation::int8 FROM pg_depend e
              JOIN pg_attribute a ON a.attrelid = e.refobjid AND a.attnum = e.refobjsubid
              WHERE (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL)
                AND e.classid = 'pg_class'::regclass AND e.objid = x.indexrelid
                AND e.refclassid = 'pg_class'::regclass AND e.refobjid = x.indrelid AND a.attcollation <> 0
             ) AS collations,
       NOT x.indisvalid AND (
         EXISTS (SELECT FROM locks l WHERE l.relation = x.indexrelid)
         OR (EXISTS (SELECT FROM locks l JOIN pg_stat_progress_create_index p USING (pid) WHERE l.relation = x.indrelid)
             AND NOT EXISTS (SELECT FROM pg_index y WHERE y.indrelid = x.indrelid AND NOT y.indisvalid
                                AND age(y.xmin) < age(x.xmin)))) AS in_work
  FROM (SELECT f.indexrelid, f.table_oid FROM found f
         ORDER BY f.relname = ANY (%s::name[]) DESC, f.indisvalid, f.indexrelid LIMIT {_MOST}) picked
  JOIN pg_index x ON x.indexrelid = picked.indexrelid
  JOIN pg_class i ON i.oid = x.indexrelid
  JOIN pg_namespace n ON n.oid = i.relnamespace
  JOIN pg_am m ON m.oid = i.relam
  JOIN pg_class r ON r.oid = x.indrelid
  JOIN pg_namespace o ON o.oid = r.relnamespace
  JOIN pg_class c ON c.oid = picked.table_oid
  LEFT JOIN pg_constraint h ON h.conindid = x.indexrelid AND h.conrelid = x.indrelid AND h.contype IN ('p', 'u', 'x')) q
"""

# With what an index on the columns has to have so that the key's own look-ups can use it: the operator families that
# have its equality, and the columns' collations.
_FOREIGN_KEYS: LiteralString = f"""
SELECT coalesce(json_agg(q ORDER BY q.table, q.name), '[]'::json) FROM (
SELECT k.oid::int8 AS oid, k.conparentid::int8 AS parent, k.conrelid::int8 AS table_oid, c.relname AS table,
       format('%%I.%%I', n.nspname, c.relname) AS table_identifier, c.relkind = 'p' AS partitioned, k.conname AS name,
       (SELECT array_agg(quote_ident(a.attname) ORDER BY u.ord) FROM unnest(k.conkey) WITH ORDINALITY u(num, ord)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num) AS identifiers,
       k.confrelid::regclass::text AS referenced,
       (SELECT json_agg(json_build_array(f.num, a.attcollation::int8, ARRAY(
                 SELECT DISTINCT g.amopfamily::int8 FROM pg_operator e JOIN pg_amop g ON g.amopopr IN (e.oid, e.oprcom)
                  WHERE e.oid = f.equal ORDER BY 1)) ORDER BY f.num)
          FROM unnest(k.conkey, k.conpfeqop) f(num, equal)
          JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = f.num) AS look_up
  FROM pg_constraint k
  JOIN pg_class c ON c.oid = k.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND {_APPLICATION} ORDER BY k.oid LIMIT {_MOST}) q
"""

# Indexes that are judged nowhere, since they are other people's or an extension's, and may be in a collation's order.
# PostgreSQL's own are in the order of "C".
_ELSEWHERE: LiteralString = f"""
SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND NOT ({_APPLICATION})
   AND ({{0}} = ANY (x.indcollation::oid[])
        OR EXISTS (SELECT FROM pg_depend e LEFT JOIN pg_attribute a
                        ON e.refclassid = 'pg_class'::regclass AND a.attrelid = e.refobjid AND a.attnum = e.refobjsubid
                    WHERE (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL)
                      AND e.classid = 'pg_class'::regclass AND e.objid = x.indexrelid
                      AND (a.attcollation = {{0}}
                           OR (e.refclassid = 'pg_collation'::regclass AND e.refobjid = {{0}}))))
"""

_OTHERS: LiteralString = f"""
SELECT json_build_object(
  'collations', (SELECT coalesce(json_agg(q ORDER BY q.name), '[]'::json) FROM (
      SELECT l.oid::int8 AS oid, format('%%I.%%I', n.nspname, l.collname) AS name, l.collversion AS recorded,
             pg_collation_actual_version(l.oid) AS actual, ({_ELSEWHERE.format("l.oid")}) AS elsewhere
        -- OFFSET: the library is asked for those alone that are in use.
        FROM (SELECT s.* FROM pg_collation s
               WHERE s.collversion IS NOT NULL AND s.oid IN (
                 SELECT unnest(x.indcollation::oid[]) FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid
                  WHERE {_APPLICATION}
                 UNION SELECT e.refobjid FROM pg_depend e
                  WHERE e.classid = 'pg_class'::regclass AND e.refclassid = 'pg_collation'::regclass)
              OFFSET 0) l
        JOIN pg_namespace n ON n.oid = l.collnamespace
       WHERE l.collversion <> pg_collation_actual_version(l.oid)) q),
  'database', (SELECT json_build_object('name', quote_ident(b.datname), 'oid', b.oid::int8,
                 'recorded', b.datcollversion, 'actual', pg_database_collation_actual_version(b.oid),
                 'elsewhere', CASE WHEN b.datcollversion <> pg_database_collation_actual_version(b.oid)
                                   THEN ({_ELSEWHERE.format("100")}) END)
                 FROM pg_database b WHERE b.datname = current_database()),
  'constraints', (SELECT coalesce(json_agg(q ORDER BY q.table, q.name), '[]'::json) FROM (
      SELECT c.relname AS table, format('%%I.%%I', n.nspname, c.relname) AS table_identifier, k.conname AS name,
             quote_ident(k.conname) AS identifier, k.contype AS type
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
       WHERE NOT k.convalidated AND k.conparentid = 0 AND k.coninhcount = 0 AND {_APPLICATION}
       ORDER BY k.oid LIMIT {_MOST}) q),
  'widths', (SELECT coalesce(json_agg(json_build_array(s.tablename, s.attname, s.avg_width)), '[]'::json)
               FROM (SELECT s.tablename, s.attname, s.avg_width FROM pg_stats s
                      WHERE NOT s.inherited AND s.schemaname = 'public' LIMIT 20000) s),
  'indexes', (SELECT count(*) FROM ({_FOUND}) f))
"""

SELECT_INDEXES: LiteralString = f"SELECT ({_INDEXES}), ({_FOREIGN_KEYS}), ({_OTHERS})"
"""One row with three values in JSON; its parameter is the names of the indexes that are looked at before all others."""

SELECT_STILL_INVALID: LiteralString = """
SELECT coalesce(array_agg(x.indexrelid::int8), '{}') FROM pg_index x
 WHERE NOT x.indisvalid AND x.indexrelid = ANY (%s::oid[])
"""
"""Of some indexes those that are invalid now."""

# Since when a server's counters count. A crash, a copy and a restore discard them all and leave only when that was, at
# the views of the whole server; a clean restart keeps everything (PostgreSQL manual, 28.2; seen with 15.18). A reset of
# this database's counters, or of one index', is in its own row.
SELECT_STATISTICS: LiteralString = """
SELECT json_build_object(
  'now', now(),
  'since', (SELECT greatest(least(b.stats_reset, a.stats_reset, w.stats_reset), d.stats_reset)
              FROM pg_stat_bgwriter b, pg_stat_archiver a, pg_stat_wal w, pg_stat_database d
             WHERE d.datname = current_database()),
  'counting', current_setting('track_counts') = 'on',
  'database', (SELECT b.oid::int8 FROM pg_database b WHERE b.datname = current_database()),
  'used', ARRAY(SELECT u.indexrelid::int8 FROM pg_stat_user_indexes u
                 WHERE u.schemaname = 'public' AND u.idx_scan > 0 ORDER BY u.indexrelid))
"""
"""One value in JSON: which indexes of a server were ever scanned, and since when that is counted."""
