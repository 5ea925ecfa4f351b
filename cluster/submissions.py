"""What a client tells the controller of the requests that it submits."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.call import Call
from cluster.messages import Submission
from cluster.packed_prompts import pack_prompts
from policies.request import RequestClass
from replicas.protocol import Generation, PromptSlice


def submissions_of(client_id: str, calls: Sequence[Call]) -> list[Submission]:
    """The current attempt of each call, to be continued from the output that has come."""
    received = [call.received_tokens for call in calls]
    prompts = pack_prompts(
        [
            (call.request.prompt_token_ids, tokens)
            for call, tokens in zip(calls, received, strict=True)
        ]
    )
    return [
        _submission(client_id, call, prompt, len(tokens))
        for call, prompt, tokens in zip(calls, prompts, received, strict=True)
    ]


def _submission(
    client_id: str, call: Call, prompt: bytes | PromptSlice, generated_tokens: int
) -> Submission:
    request = call.request
    return Submission(
        generation=Generation(
            request_id=request.request_id,
            client_id=client_id,
            prompt=prompt,
            generated_tokens=generated_tokens,
            sampling={**request.sampling, "max_tokens": request.max_tokens},
            attempt=call.attempt,
            interactive=request.request_class is RequestClass.ONLINE,
        ),
        prompt_tokens=len(request.prompt_token_ids),
        max_tokens=request.max_tokens,
        request_class=request.request_class,
        tenant=request.tenant,
        text=request.text,
        forecast=request.forecast,
        evictions=call.evictions,
        strikes=call.strikes,
        trace=request.trace,
        job=request.job,
        accepted=call.resubmitted,
    )
