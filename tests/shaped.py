"""MediaNest-shaped rows: people, what they asked for, and the errors that they met, each with a stack trace."""

USERS_A_MEGABYTE = 130

_ROWS = r"""
INSERT INTO users (id, email, name, plex_username)
SELECT 'u' || n, 'user' || n || '@example.org', 'User ' || n, 'plex' || n FROM generate_series({first}, {last}) n;
INSERT INTO media_requests (id, user_id, title, media_type, tmdb_id, status)
SELECT 'm' || n || '-' || k, 'u' || n, md5(n || ' ' || k), 'movie', (n * 7 + k)::text, 'pending'
  FROM generate_series({first}, {last}) n, generate_series(1, 10) k;
INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, stack_trace, request_path,
                        request_method)
SELECT 'e' || n || '-' || k, md5(n::text), 'u' || n, 'E_TIMEOUT', 'Overseerr did not answer',
       (SELECT string_agg(md5(n || ' ' || k || ' ' || l), E'\n    at ') FROM generate_series(1, 30) l),
       '/api/media/request', 'POST'
  FROM generate_series({first}, {last}) n, generate_series(1, 4) k;
"""


def rows(first: int, last: int) -> str:
    """SQL for the users of these numbers and all that is theirs; a thousand of them take about 8 MB."""
    return _ROWS.format(first=first, last=last)
