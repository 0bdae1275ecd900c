"""`rankwright verify --url`: the golden pairs put to a running server, and what is wrong with its answers."""

from rankwright.export.servers.report import verify_server

__all__ = ["verify_server"]
