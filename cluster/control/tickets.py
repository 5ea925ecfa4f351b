"""What replicas keep for a controller that may forget it: enough to take a running request over."""

from __future__ import annotations

import msgspec

from cluster.messages import Submission
from replicas.protocol import Generation

_encoder = msgspec.msgpack.Encoder(enc_hook=repr)
_decoder = msgspec.msgpack.Decoder(Submission)


def ticket_of(submission: Submission, generation: Generation) -> bytes:
    """The ticket of a dispatch: its submission without text and prompt.

    Args:
        submission: What the client asked for.
        generation: The same as it is dispatched, with its terms.
    """
    bare = msgspec.structs.replace(generation, prompt=b"", ticket=b"")
    return _encoder.encode(msgspec.structs.replace(submission, generation=bare, text=""))


def submission_of(ticket: bytes) -> Submission:
    """The submission of a dispatch, with the terms of its generation."""
    return _decoder.decode(ticket)
