"""What runs the loop: watching, the cache, the queue, the Lease, and the one client of the API server."""
