"""A certificate for 127.0.0.1, and the authority that signed it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """Files in PEM."""

    authority: Path
    certificate: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """Write a certificate into a folder."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    made = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *made, "-keyout", "ca_key.pem", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    openssl("req", *made, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca_key.pem", "-CAcreateserial",
        "-days", "2", "-extfile", "names", "-out", "certificate.pem",
    )  # fmt: skip
    return Certificate(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
