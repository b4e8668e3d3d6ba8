"""The server: HTTP around the library, requests that arrive together computed together."""
