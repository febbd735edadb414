"""The server's web side: the API, sockets, and the page."""
