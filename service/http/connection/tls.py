"""TLS of the listening socket, as the settings name its files."""

from __future__ import annotations

import ssl
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings, option_of


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what connections are encrypted with, or None for plain HTTP; raises SettingsError that names the file.

    With `tls_ca_certificates` only clients with a certificate from one of these are let in. TLS 1.2 is the oldest
    version that is spoken, as Python has it.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        return None
    for field in ("tls_certificate", "tls_key", "tls_ca_certificates"):
        _check_readable(field, getattr(settings, field))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    password = settings.tls_key_password
    try:
        # Given as a function: without any, OpenSSL would ask the terminal for the password of an encrypted key.
        context.load_cert_chain(certificate, key, lambda: password.get_secret_value() if password else "")
    except (ssl.SSLError, ValueError) as error:
        files = f"{certificate} and {key}" if key else str(certificate)
        raise SettingsError(
            f"{option_of('tls_certificate')}: {files} are not a certificate and its key in PEM, or the key's password "
            f"is not what {option_of('tls_key_password')} says ({_reason(error)})"
        ) from error
    if settings.tls_ca_certificates is not None:
        try:
            context.load_verify_locations(settings.tls_ca_certificates)
        except ssl.SSLError as error:
            raise SettingsError(
                f"{option_of('tls_ca_certificates')}: {settings.tls_ca_certificates} holds no certificates in PEM "
                f"({_reason(error)})"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(field: str, path: Path | None) -> None:
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{option_of(field)}: {path} cannot be read: {error.strerror}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
