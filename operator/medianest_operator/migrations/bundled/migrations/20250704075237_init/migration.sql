-- The MediaNest schema as first released. Times are UTC with milliseconds, as Prisma's DateTime stores them.

-- People and how they sign in.
CREATE TABLE users (
    id                       text NOT NULL,
    plex_id                  text,
    plex_username            text,
    email                    text NOT NULL,
    name                     text,
    role                     text NOT NULL DEFAULT 'USER',
    plex_token               text,
    image                    text,
    requires_password_change boolean NOT NULL DEFAULT false,
    created_at               timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_login_at            timestamp(3),
    status                   text NOT NULL DEFAULT 'active',
    CONSTRAINT users_pkey PRIMARY KEY (id)
);
CREATE UNIQUE INDEX users_plex_id_key ON users (plex_id);
CREATE UNIQUE INDEX users_email_key ON users (email);

CREATE TABLE accounts (
    id                  text NOT NULL,
    user_id             text NOT NULL,
    type                text NOT NULL,
    provider            text NOT NULL,
    provider_account_id text NOT NULL,
    refresh_token       text,
    access_token        text,
    expires_at          integer,
    token_type          text,
    scope               text,
    id_token            text,
    session_state       text,
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE UNIQUE INDEX accounts_provider_provider_account_id_key ON accounts (provider, provider_account_id);

CREATE TABLE sessions (
    id            text NOT NULL,
    session_token text NOT NULL,
    user_id       text NOT NULL,
    expires       timestamp(3) NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE UNIQUE INDEX sessions_session_token_key ON sessions (session_token);

CREATE TABLE session_tokens (
    id           text NOT NULL,
    user_id      text NOT NULL,
    token_hash   text NOT NULL,
    expires_at   timestamp(3) NOT NULL,
    created_at   timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    last_used_at timestamp(3),
    CONSTRAINT session_tokens_pkey PRIMARY KEY (id),
    CONSTRAINT session_tokens_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE RESTRICT ON UPDATE CASCADE
);
CREATE UNIQUE INDEX session_tokens_token_hash_key ON session_tokens (token_hash);

-- Deliberately without a primary key: a token is found by its value.
CREATE TABLE verification_tokens (
    identifier text NOT NULL,
    token      text NOT NULL,
    expires    timestamp(3) NOT NULL
);
CREATE UNIQUE INDEX verification_tokens_token_key ON verification_tokens (token);
CREATE UNIQUE INDEX verification_tokens_identifier_token_key ON verification_tokens (identifier, token);

-- What people ask for.
CREATE TABLE media_requests (
    id           text NOT NULL,
    user_id      text NOT NULL,
    title        text NOT NULL,
    media_type   text NOT NULL,
    tmdb_id      text,
    status       text NOT NULL DEFAULT 'pending',
    overseerr_id text,
    created_at   timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at timestamp(3),
    CONSTRAINT media_requests_pkey PRIMARY KEY (id),
    CONSTRAINT media_requests_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE RESTRICT ON UPDATE CASCADE
);

CREATE TABLE youtube_downloads (
    id                 text NOT NULL,
    user_id            text NOT NULL,
    playlist_url       text NOT NULL,
    playlist_title     text,
    status             text NOT NULL DEFAULT 'queued',
    file_paths         jsonb,
    plex_collection_id text,
    created_at         timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at       timestamp(3),
    CONSTRAINT youtube_downloads_pkey PRIMARY KEY (id),
    CONSTRAINT youtube_downloads_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE RESTRICT ON UPDATE CASCADE
);
CREATE INDEX youtube_downloads_user_id_idx ON youtube_downloads (user_id);

-- The services around MediaNest, and how often they may be called.
CREATE TABLE service_status (
    id                serial,
    service_name      text NOT NULL,
    status            text,
    response_time_ms  integer,
    last_check_at     timestamp(3),
    uptime_percentage numeric(5, 2),
    CONSTRAINT service_status_pkey PRIMARY KEY (id)
);
CREATE UNIQUE INDEX service_status_service_name_key ON service_status (service_name);

CREATE TABLE service_config (
    id           serial,
    service_name text NOT NULL,
    service_url  text NOT NULL,
    api_key      text,
    enabled      boolean NOT NULL DEFAULT true,
    config_data  jsonb,
    updated_at   timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_by   text,
    CONSTRAINT service_config_pkey PRIMARY KEY (id),
    CONSTRAINT service_config_updated_by_fkey FOREIGN KEY (updated_by) REFERENCES users (id)
        ON DELETE SET NULL ON UPDATE CASCADE
);
CREATE UNIQUE INDEX service_config_service_name_key ON service_config (service_name);

CREATE TABLE rate_limits (
    id            serial,
    user_id       text NOT NULL,
    endpoint      text NOT NULL,
    request_count integer NOT NULL DEFAULT 0,
    window_start  timestamp(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT rate_limits_pkey PRIMARY KEY (id),
    CONSTRAINT rate_limits_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id)
        ON DELETE RESTRICT ON UPDATE CASCADE
);
