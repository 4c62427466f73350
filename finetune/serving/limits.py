"""What one request, and all requests together, may take of the machine."""

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """The limits of a service.

    Attributes:
        body: bytes of a request's body.
        rows: texts or images of a request, and rows that share a forward pass.
        queued: requests that wait for the model; more are answered with 429.
        patience: seconds in which rows that were accepted should be answered, as fast as the model
            is now. Beyond a whole batch, no more are accepted than that.
        deadline: seconds until a request is read and answered, or its stream begins; a stream may
            take as long again.
        wait: seconds that a request waits for others to share its forward pass.
        decoded: bytes of a request's images, and of those of a batch, as decoded pixels.
    """

    body: int = 1_000_000
    rows: int = 32
    queued: int = 64
    patience: float = 0.6
    deadline: float = 10.0
    wait: float = 0.003
    decoded: int = 64_000_000
