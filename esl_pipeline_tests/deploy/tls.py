"""An authority of our own and the certificates that it signs, with the program openssl."""

import os
import pwd
import subprocess
from pathlib import Path


class Certificates:
    """In a folder that everybody may read; each key belongs to its user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.ca = folder, folder / "ca.pem"
        folder.mkdir(mode=0o755)
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Rehearsal CA"),
            *("-keyout", "ca.key", "-out", "ca.pem"),
        )

    def issue(self, name: str, user: pwd.struct_passwd | None) -> tuple[Path, Path]:
        """Certificate and key of a server on this machine."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        if not certificate.exists():
            extension = self._folder / "names"
            extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            new = ("-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
            self._openssl("req", *new, "-keyout", key.name, "-out", "request")
            signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
            self._openssl(
                "x509", "-req", "-in", "request", *signed_by, "-extfile", "names", "-out", certificate.name
            )
            key.chmod(0o600)
            if user is not None:
                os.chown(key, user.pw_uid, user.pw_gid)
        return certificate, key

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True, timeout=60)
