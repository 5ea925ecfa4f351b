"""What the controller keeps of the requests that have not ended."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator

import msgspec

from cluster.messages import Submission
from cluster.visible_ids import VisibleIds
from policies.request import RequestClass

MOST_ORPHANS = 10_000
"""Requests of lost replicas of which the submission is kept until the next one comes."""


class OpenRequests:
    """The latest submission of each request, with the time at which it came.

    Attributes:
        visible: Their ids by what HTTP clients know of them.
    """

    def __init__(self) -> None:
        self.visible = VisibleIds()
        self._submissions: dict[str, Submission] = {}
        self._since_s: dict[RequestClass, dict[str, float]] = {kind: {} for kind in RequestClass}
        self._of_client: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._orphans: OrderedDict[str, Submission] = OrderedDict()

    def __len__(self) -> int:
        return len(self._submissions)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._submissions

    def __getitem__(self, request_id: str) -> Submission:
        return self._submissions[request_id]

    def get(self, request_id: str) -> Submission | None:
        """The submission; None when the request is not known or has ended."""
        return self._submissions.get(request_id)

    def ids(self) -> Iterator[str]:
        """All ids, in the order in which their latest submissions came."""
        return iter(self._submissions)

    def add(self, submission: Submission, now: float) -> None:
        """Remember a submission, in the place of an earlier one of the same request.

        Args:
            submission: Which.
            now: Seconds, no less than those of any call before.
        """
        request_id = submission.generation.request_id
        self.discard(request_id)
        self._orphans.pop(request_id, None)
        self._submissions[request_id] = submission
        self._since_s[submission.request_class][request_id] = now
        self.visible.add(request_id, submission.tenant)
        self._of_client[submission.generation.client_id][request_id] = None

    def discard(self, request_id: str) -> Submission | None:
        """Forget a request and return its submission; None when it is not known."""
        known = self._submissions.pop(request_id, None)
        if known is None:
            return None
        del self._since_s[known.request_class][request_id]
        self.visible.discard(request_id, known.tenant)
        client_id = known.generation.client_id
        del self._of_client[client_id][request_id]
        if not self._of_client[client_id]:
            del self._of_client[client_id]
        return known

    def orphan(self, request_id: str) -> Submission | None:
        """Like `discard`, of a request whose client is to submit it again."""
        submission = self.discard(request_id)
        if submission is not None:
            bare = msgspec.structs.replace(submission.generation, prompt=b"", sampling={})
            self._orphans[request_id] = msgspec.structs.replace(submission, generation=bare)
            if len(self._orphans) > MOST_ORPHANS:
                self._orphans.popitem(last=False)
        return submission

    def orphaned(self, request_id: str) -> Submission | None:
        """One that was orphaned and not submitted again, without its prompt, while it is kept."""
        return self._orphans.get(request_id)

    def attempts_of(self, client_id: str) -> dict[str, int]:
        """The current attempt of each request of a client."""
        return {
            request_id: self[request_id].generation.attempt
            for request_id in self._of_client.get(client_id, ())
        }

    def since_before(self, moment: float, request_class: RequestClass) -> Iterator[Submission]:
        """Those of a class that came at or before a moment, in seconds of the caller's clock.

        Takes time for these only, however many came later or are of another class.
        """
        for request_id, since_s in self._since_s[request_class].items():
            if since_s > moment:
                break
            yield self[request_id]
