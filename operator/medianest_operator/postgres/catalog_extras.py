"""More questions of `catalog_queries`, for what few databases have: what types and functions are used through, what
leads elsewhere, and what only a superuser may make. Catalogs know these since their version 2.
"""

from __future__ import annotations

from typing import Final, LiteralString

from medianest_operator.postgres.catalog_queries import PUBLIC, USER_SCHEMA, not_of_extension

OPERATORS: LiteralString = f"""
SELECT 'operator' AS kind, NULL AS owner_table,
       {PUBLIC} || o.oprname || ' (' || CASE o.oprleft WHEN 0 THEN 'none' ELSE format_type(o.oprleft, NULL) END
       || ', ' || CASE o.oprright WHEN 0 THEN 'none' ELSE format_type(o.oprright, NULL) END || ')' AS name,
       pg_get_userbyid(o.oprowner) AS owner, format_type(o.oprresult, NULL) AS result,
       o.oprcode::regprocedure::text AS function,
       CASE WHEN o.oprcom <> 0 THEN o.oprcom::regoperator::text END AS commutator,
       CASE WHEN o.oprnegate <> 0 THEN o.oprnegate::regoperator::text END AS negator,
       CASE WHEN o.oprrest <> 0 THEN o.oprrest::regproc::text END AS restrict,
       CASE WHEN o.oprjoin <> 0 THEN o.oprjoin::regproc::text END AS join, o.oprcanmerge AS merges,
       o.oprcanhash AS hashes
  FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
 WHERE o.oprcode <> 0 AND {USER_SCHEMA} AND {not_of_extension("pg_operator", "o")}
"""

OPERATOR_FAMILIES: LiteralString = f"""
SELECT 'operator family' AS kind, NULL AS owner_table,
       {PUBLIC} || quote_ident(f.opfname) || ' USING ' || quote_ident(m.amname) AS name,
       pg_get_userbyid(f.opfowner) AS owner,
       (SELECT array_agg(a.amopstrategy || ' ' || a.amopopr::regoperator::text ORDER BY a.amopstrategy, a.amopopr)
          FROM pg_amop a WHERE a.amopfamily = f.oid) AS operators,
       (SELECT array_agg(p.amprocnum || ' ' || p.amproc::regprocedure::text ORDER BY p.amprocnum, p.amproc::text)
          FROM pg_amproc p WHERE p.amprocfamily = f.oid) AS functions
  FROM pg_opfamily f JOIN pg_namespace n ON n.oid = f.opfnamespace JOIN pg_am m ON m.oid = f.opfmethod
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_opfamily", "f")}
"""

OPERATOR_CLASSES: LiteralString = f"""
SELECT 'operator class' AS kind, NULL AS owner_table,
       {PUBLIC} || quote_ident(o.opcname) || ' USING ' || quote_ident(m.amname) AS name,
       pg_get_userbyid(o.opcowner) AS owner, format_type(o.opcintype, NULL) AS type, o.opcdefault AS "default",
       CASE WHEN o.opckeytype <> 0 THEN format_type(o.opckeytype, NULL) END AS storage,
       (SELECT quote_ident(f.opfname) FROM pg_opfamily f WHERE f.oid = o.opcfamily) AS family
  FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace JOIN pg_am m ON m.oid = o.opcmethod
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_opclass", "o")}
"""

# 16384 is the first identifier of an object that initdb didn't make.
CASTS: LiteralString = f"""
SELECT 'cast' AS kind, NULL AS owner_table,
       format_type(c.castsource, NULL) || ' AS ' || format_type(c.casttarget, NULL) AS name,
       CASE WHEN c.castfunc <> 0 THEN c.castfunc::regprocedure::text END AS function,
       c.castcontext AS context, c.castmethod AS method
  FROM pg_cast c WHERE c.oid >= 16384 AND {not_of_extension("pg_cast", "c")}
   -- Of a range type comes one with its multirange type.
   AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'i')
"""

# `to_jsonb` because older servers have no such columns.
COLLATIONS: LiteralString = f"""
SELECT 'collation' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(c.collname) AS name,
       pg_get_userbyid(c.collowner) AS owner, c.collprovider AS provider, c.collcollate AS collate,
       c.collctype AS ctype, to_jsonb(c) ->> 'colliculocale' AS locale,
       to_jsonb(c) ->> 'collisdeterministic' AS deterministic, c.collencoding AS encoding
  FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_collation", "c")}
"""

CONVERSIONS: LiteralString = f"""
SELECT 'conversion' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(c.conname) AS name,
       pg_get_userbyid(c.conowner) AS owner, pg_encoding_to_char(c.conforencoding) AS "from",
       pg_encoding_to_char(c.contoencoding) AS "to", c.conproc::regproc::text AS function, c.condefault AS "default"
  FROM pg_conversion c JOIN pg_namespace n ON n.oid = c.connamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_conversion", "c")}
"""

TEXT_SEARCH_CONFIGURATIONS: LiteralString = f"""
SELECT 'text search configuration' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(c.cfgname) AS name,
       pg_get_userbyid(c.cfgowner) AS owner,
       (SELECT quote_ident(p.prsname) FROM pg_ts_parser p WHERE p.oid = c.cfgparser) AS parser,
       (SELECT array_agg(m.maptokentype || ' ' || m.mapdict::regdictionary::text ORDER BY m.maptokentype, m.mapseqno)
          FROM pg_ts_config_map m WHERE m.mapcfg = c.oid) AS mappings
  FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_ts_config", "c")}
"""

TEXT_SEARCH_DICTIONARIES: LiteralString = f"""
SELECT 'text search dictionary' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(x.dictname) AS name,
       pg_get_userbyid(x.dictowner) AS owner, x.dictinitoption AS options,
       (SELECT quote_ident(t.tmplname) FROM pg_ts_template t WHERE t.oid = x.dicttemplate) AS template
  FROM pg_ts_dict x JOIN pg_namespace n ON n.oid = x.dictnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_ts_dict", "x")}
"""

TEXT_SEARCH_PARTS: LiteralString = f"""
SELECT 'text search parser' AS kind, NULL AS owner_table, {PUBLIC} || quote_ident(p.prsname) AS name,
       p.prstoken::regproc::text AS function
  FROM pg_ts_parser p JOIN pg_namespace n ON n.oid = p.prsnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_ts_parser", "p")}
 UNION ALL
SELECT 'text search template', NULL, {PUBLIC} || quote_ident(t.tmplname), t.tmpllexize::regproc::text
  FROM pg_ts_template t JOIN pg_namespace n ON n.oid = t.tmplnamespace
 WHERE {USER_SCHEMA} AND {not_of_extension("pg_ts_template", "t")}
"""

LANGUAGES: LiteralString = f"""
SELECT 'language' AS kind, NULL AS owner_table, quote_ident(l.lanname) AS name, pg_get_userbyid(l.lanowner) AS owner,
       l.lanpltrusted AS trusted, l.lanplcallfoid::regproc::text AS function
  FROM pg_language l WHERE l.oid >= 16384 AND {not_of_extension("pg_language", "l")}
"""

TRANSFORMS: LiteralString = f"""
SELECT 'transform' AS kind, NULL AS owner_table,
       'for ' || format_type(t.trftype, NULL) || ' language ' || quote_ident(l.lanname) AS name,
       CASE WHEN t.trffromsql <> 0 THEN t.trffromsql::regprocedure::text END AS from_sql,
       CASE WHEN t.trftosql <> 0 THEN t.trftosql::regprocedure::text END AS to_sql
  FROM pg_transform t JOIN pg_language l ON l.oid = t.trflang WHERE {not_of_extension("pg_transform", "t")}
"""

ACCESS_METHODS: LiteralString = f"""
SELECT 'access method' AS kind, NULL AS owner_table, quote_ident(m.amname) AS name, m.amtype AS type,
       m.amhandler::regproc::text AS function
  FROM pg_am m WHERE m.oid >= 16384 AND {not_of_extension("pg_am", "m")}
"""

EVENT_TRIGGERS: LiteralString = f"""
SELECT 'event trigger' AS kind, NULL AS owner_table, quote_ident(e.evtname) AS name,
       pg_get_userbyid(e.evtowner) AS owner, e.evtevent AS event, e.evtfoid::regproc::text AS function,
       e.evtenabled AS enabled, e.evttags AS tags
  FROM pg_event_trigger e WHERE {not_of_extension("pg_event_trigger", "e")}
"""

FOREIGN_SERVERS: LiteralString = f"""
SELECT 'foreign data wrapper' AS kind, NULL AS owner_table, quote_ident(w.fdwname) AS name,
       pg_get_userbyid(w.fdwowner) AS owner, NULL AS wrapper,
       CASE WHEN w.fdwhandler <> 0 THEN w.fdwhandler::regproc::text END AS function, w.fdwoptions AS options
  FROM pg_foreign_data_wrapper w WHERE {not_of_extension("pg_foreign_data_wrapper", "w")}
 UNION ALL
SELECT 'foreign server', NULL, quote_ident(s.srvname), pg_get_userbyid(s.srvowner), quote_ident(w.fdwname),
       concat_ws(' ', s.srvtype, s.srvversion), s.srvoptions
  FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw
 WHERE {not_of_extension("pg_foreign_server", "s")}
"""

# Their options hold passwords: only whoever may use them sees those, and no catalog holds them.
USER_MAPPINGS: LiteralString = """
SELECT 'user mapping' AS kind, NULL AS owner_table,
       quote_ident(m.srvname) || ' for ' || quote_ident(coalesce(m.usename, 'public')) AS name
  FROM pg_user_mappings m
"""

# Its columns but the connection string, which is a superuser's to read.
SUBSCRIPTIONS: LiteralString = """
SELECT 'subscription' AS kind, NULL AS owner_table, quote_ident(s.subname) AS name,
       pg_get_userbyid(s.subowner) AS owner, s.subpublications AS publications
  FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()
"""

SECURITY_LABELS: LiteralString = """
SELECT 'security label' AS kind, NULL AS owner_table, l.objtype || ' ' || l.objname AS name, l.provider, l.label
  FROM pg_seclabels l WHERE l.objtype NOT IN ('database', 'role', 'tablespace')
"""


def _says_more(rights: LiteralString, default: LiteralString) -> LiteralString:
    """Whether rights are others than the built-in ones, which no dump has."""
    return f"""{rights} IS NOT NULL
                   AND (SELECT array_agg(i::text ORDER BY i::text) FROM unnest({rights}) i)
                       <> (SELECT array_agg(i::text ORDER BY i::text) FROM unnest(acldefault({default})) i)"""


RIGHTS: LiteralString = f"""
SELECT 'grants' AS kind, NULL AS owner_table, g.name,
       array_agg(g.grantee || ': ' || g.rights ORDER BY g.grantee) AS rights
  FROM (SELECT o.name, CASE a.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(a.grantee)::text END AS grantee,
               string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN ' (grantable)' ELSE '' END, ', '
                          ORDER BY a.privilege_type) AS rights
          FROM (SELECT 'foreign data wrapper ' || quote_ident(w.fdwname), w.fdwacl
                  FROM pg_foreign_data_wrapper w WHERE {_says_more("w.fdwacl", "'F', w.fdwowner")}
                UNION ALL
                SELECT 'foreign server ' || quote_ident(s.srvname), s.srvacl
                  FROM pg_foreign_server s WHERE {_says_more("s.srvacl", "'S', s.srvowner")}
                UNION ALL
                SELECT 'language ' || quote_ident(l.lanname), l.lanacl
                  FROM pg_language l WHERE {_says_more("l.lanacl", "'l', l.lanowner")}
               ) o(name, acl), aclexplode(o.acl) a
         GROUP BY o.name, a.grantee) g
 GROUP BY g.name
"""

SECTIONS: Final[tuple[LiteralString, ...]] = (
    OPERATORS,
    OPERATOR_FAMILIES,
    OPERATOR_CLASSES,
    CASTS,
    COLLATIONS,
    CONVERSIONS,
    TEXT_SEARCH_CONFIGURATIONS,
    TEXT_SEARCH_DICTIONARIES,
    TEXT_SEARCH_PARTS,
    LANGUAGES,
    TRANSFORMS,
    ACCESS_METHODS,
    EVENT_TRIGGERS,
    FOREIGN_SERVERS,
    USER_MAPPINGS,
    SUBSCRIPTIONS,
    SECURITY_LABELS,
    RIGHTS,
)
KINDS: Final = frozenset({
    "access method", "cast", "collation", "conversion", "event trigger",
    "foreign data wrapper", "foreign server", "language", "operator", "operator class",
    "operator family", "security label", "subscription", "text search configuration",
    "text search dictionary", "text search parser", "text search template", "transform", "user mapping",
})  # fmt: skip
"""What the sections tell of."""
RIGHTS_ON: Final = ("foreign data wrapper ", "foreign server ", "language ")
"""How the names of their rights begin."""
ATTRIBUTES: Final = {
    "aggregate": frozenset({"aggregate"}),
    "foreign table": frozenset({"foreign"}),
    "publication": frozenset({"owner", "via_root", "schemas", "parts"}),
}
"""What else is told of the other kinds."""
