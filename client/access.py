"""How a server is reached, and what is raised where it is not."""

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # gRPC takes a while to load
    from tritonclient.utils import InferenceServerException

# Where systems keep the authorities that they trust; gRPC would look into its own wheel instead.
SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)
ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"  # gRPC's own environment variable
ADDRESS = re.compile(r"([^\s/,]+):([0-9]{1,5})")
HEADER = re.compile(r"(?!.*-bin$)[0-9a-z_.-]+")  # what gRPC takes as a name; those in -bin are not text
PRINTABLE = re.compile(r"[ -~]*")
LONGEST_S = 1_000_000  # far beyond it, gRPC's clock overflows
# gRPC: it was killed; Triton: it is being stopped, and has unloaded its models before its port is closed, or the
# process of a Python model, such as a card's engine, has died, and another is started
HUNG_UP = re.compile(
    r"stream removed|socket closed|rst_stream|connection reset|has no available versions|stub process", re.I
)


class ServerError(RuntimeError):
    """The server is absent, failed or refused; the message is one sentence."""


class ServerSlowError(ServerError):
    """No answer within the deadline: another try would take as long, but later there may be less to do."""


class ServerGoneError(ServerError):
    """No server answers, now: the same request may succeed later or elsewhere."""


class ServerFullError(ServerGoneError):
    """The server's memory does not suffice for this request, now or ever: others may hold it, or it is too large."""


class ServerBusyError(ServerGoneError):
    """The server has as many requests as it takes."""


@dataclass(frozen=True)
class Access:
    """How a server is reached. tls: encrypt, trusting the system's authorities or those in `authorities` (PEM).

    certificate, key: who we are (PEM, both or none), for servers that ask; they and `authorities` imply tls.
    headers: sent with each call, such as {"authorization": "Bearer TOKEN"}. timeout_s: deadline of one request.
    """

    timeout_s: float = 600.0
    tls: bool = False
    authorities: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= LONGEST_S:
            raise ServerError(f"the timeout is {self.timeout_s:g}; it is in seconds, above 0 and at most {LONGEST_S}")
        for name, value in self.metadata.items():
            if not HEADER.fullmatch(name) or not PRINTABLE.fullmatch(value):
                remedy = "a name has letters, digits and -_., no -bin at its end; a value is ASCII"
                raise ServerError(f'the header "{name}" is no text: {remedy}')
        authorities = self.authorities
        if authorities is not None and not _is_readable(Path(authorities)):
            raise ServerError(f"{self.authorities} cannot be read; it must hold the authorities to trust, as PEM")
        if self.certificate is None and self.key is None:
            return
        if self.certificate is None or self.key is None:
            raise ServerError("a client certificate and its key belong together; give both or none")
        try:  # gRPC would tell a wrong pair as a server that does not answer
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.certificate, self.key, password=b"")
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise ServerError(
                f"{self.certificate} and {self.key} cannot be used ({str(reason).lower()}); they must be a certificate "
                "and its key, unencrypted, as PEM"
            ) from error

    @property
    def metadata(self) -> dict[str, str]:
        """The headers as gRPC wants them."""
        return {name.lower(): value for name, value in self.headers.items()}

    @property
    def trusted(self) -> Path | str | None:
        """The authorities to trust, as PEM; None: those that gRPC brings, where the system's are not found."""
        if self.authorities is not None or os.environ.get(ROOTS):
            return self.authorities
        paths = ssl.get_default_verify_paths()  # heeds SSL_CERT_FILE
        return next((path for path in (paths.cafile, *SYSTEM_AUTHORITIES) if path and _is_readable(Path(path))), None)

    @property
    def encrypts(self) -> bool:
        """Whether TLS is spoken."""
        return self.tls or self.authorities is not None or self.certificate is not None


def _is_readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def host_of(address: str) -> str:
    """The host of HOST:PORT; "" where the address is anything else, such as a URL."""
    found = ADDRESS.fullmatch(address)
    return found[1] if found and 1 <= int(found[2]) <= 65535 else ""


def is_gone(error: "InferenceServerException") -> bool:
    """Whether nobody answers, somebody hung up or is about to."""
    return "UNAVAILABLE" in str(error.status()) or bool(HUNG_UP.search(str(error.message())))
