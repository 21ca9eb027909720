"""All that talks to the API server: the client, the cache of watched objects, server-side apply, Events."""
