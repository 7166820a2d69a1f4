"""Who may ask: API keys of clients, the workers' shared secret, the operator's admin key."""

from server.auth.api_key import ApiKey, KeyLimits
from server.auth.bearer import Headers
from server.auth.clients import ClientAuth
from server.auth.doors import AdminAuth, WorkerAuth

__all__ = ["AdminAuth", "ApiKey", "ClientAuth", "Headers", "KeyLimits", "WorkerAuth"]
