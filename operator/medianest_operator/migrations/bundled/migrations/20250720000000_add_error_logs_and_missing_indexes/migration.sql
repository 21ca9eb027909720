-- Errors with the correlation id that the user was shown.
CREATE TABLE error_logs (
    id             text NOT NULL,
    correlation_id text NOT NULL,
    user_id        text NOT NULL,
    error_code     text NOT NULL,
    error_message  text NOT NULL,
    stack_trace    text,
    request_path   text NOT NULL,
    request_method text NOT NULL,
    status_code    integer,
    metadata       jsonb,
    created_at     timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT error_logs_pkey PRIMARY KEY (id),
    CONSTRAINT error_logs_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE RESTRICT ON UPDATE CASCADE
);
CREATE INDEX error_logs_correlation_id_idx ON error_logs (correlation_id);
CREATE INDEX error_logs_user_id_idx ON error_logs (user_id);
CREATE INDEX error_logs_created_at_idx ON error_logs (created_at);

-- Look-ups that had no index: a user's requests and the newest, a title's requests, rate limits, expiry sweeps, a
-- user's sessions, the latest checks.
CREATE INDEX media_requests_user_id_status_idx ON media_requests (user_id, status);
CREATE INDEX media_requests_created_at_idx ON media_requests (created_at);
CREATE INDEX media_requests_tmdb_id_media_type_idx ON media_requests (tmdb_id, media_type);
CREATE INDEX rate_limits_user_id_endpoint_idx ON rate_limits (user_id, endpoint);
CREATE INDEX rate_limits_window_start_idx ON rate_limits (window_start);
CREATE INDEX service_status_last_check_at_idx ON service_status (last_check_at);
CREATE INDEX session_tokens_expires_at_idx ON session_tokens (expires_at);
CREATE INDEX session_tokens_user_id_idx ON session_tokens (user_id);
CREATE INDEX sessions_expires_idx ON sessions (expires);
CREATE INDEX sessions_user_id_idx ON sessions (user_id);
