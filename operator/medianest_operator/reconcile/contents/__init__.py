"""The concerns of what is in the servers: logins, rights, the application's schema and its indexes."""
