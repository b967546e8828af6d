"""The one frozen settings object: defaults, then `serai.toml`, then `SERAI_…` variables.

Anything wrong (an unknown key, a value out of bounds, an unreadable file) stops the start with a
`ConfigurationError` that names the key, the value and what is allowed. A value that is a secret
comes from the environment or from a file (`SERAI_JWT_SECRET_FILE=/run/secrets/jwt`), never from
`serai.toml`, and prints as stars.
"""

from serai.settings.loading import (
    CONFIG_VARIABLE,
    FILE_SUFFIX,
    KEY_VARIABLE,
    PREFIX,
    SECRET_PREFIX,
    URL_FILE,
    URL_VARIABLE,
    ClientSettings,
    client_settings,
    load,
)
from serai.settings.model import GIB, MIB, Bytes, Count, Seconds, Settings, is_loopback

__all__ = [
    "CONFIG_VARIABLE",
    "FILE_SUFFIX",
    "GIB",
    "KEY_VARIABLE",
    "MIB",
    "PREFIX",
    "SECRET_PREFIX",
    "URL_FILE",
    "URL_VARIABLE",
    "Bytes",
    "ClientSettings",
    "Count",
    "Seconds",
    "Settings",
    "client_settings",
    "is_loopback",
    "load",
]
