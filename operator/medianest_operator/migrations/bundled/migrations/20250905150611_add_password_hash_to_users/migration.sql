-- Local sign-in besides Plex: the hash of the user's password, absent for Plex accounts.
ALTER TABLE users ADD COLUMN password_hash text;
