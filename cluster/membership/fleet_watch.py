"""What the replicas' reports say over time: who makes no progress, and how many there should be."""

from __future__ import annotations

from cluster.config import ClusterConfig
from cluster.membership.autoscaler import Autoscaler
from cluster.membership.throughput import Throughput
from cluster.membership.watchdog import Watchdog
from replicas.protocol import ReplicaReport


class FleetWatch:
    """Follows the reports of all replicas.

    Args:
        config: The cluster's configuration.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._watchdog = Watchdog(config.replicas.frozen_after_s)
        self._autoscaler = Autoscaler(config.autoscale)
        self._throughput = Throughput()
        self._seen: dict[str, dict[str, int]] = {}
        self._kv_usage: dict[str, float] = {}

    def reported(
        self, report: ReplicaReport, has_work: bool, now: float, *, made_tokens: int
    ) -> None:
        """A replica has reported.

        Args:
            report: What it said.
            has_work: Whether requests are left to run there, as the scheduler knows.
            now: Seconds.
            made_tokens: Output tokens that the replica has made, as the scheduler knows.
        """
        self._watchdog.progressed(report.replica_id, self._progress(report), has_work, now)
        self._throughput.reported(report.replica_id, made_tokens, has_work, now)

    def dispatched(self, replica_id: str, now: float) -> None:
        """A replica has been sent work."""
        self._watchdog.progressed(replica_id, False, True, now)

    def forget(self, replica_id: str) -> None:
        """A replica is gone."""
        self._watchdog.forget(replica_id)
        self._throughput.forget(replica_id)
        self._seen.pop(replica_id, None)
        self._kv_usage.pop(replica_id, None)

    def frozen(self, now: float) -> list[str]:
        """The replicas that have had work and made no progress for too long."""
        return self._watchdog.frozen(now)

    @property
    def scales(self) -> bool:
        """Whether the number of replicas follows the work."""
        return self._autoscaler.enabled

    def wanted(self, now: float, *, current: int, queued_tokens: int, busy: float) -> int:
        """How many replicas there should be (see `Autoscaler.wanted`)."""
        return self._autoscaler.wanted(
            now,
            current=current,
            queued_tokens=queued_tokens,
            busy=busy,
            tokens_per_s_per_replica=self._throughput.tokens_s,
        )

    def _progress(self, report: ReplicaReport) -> bool:
        """Whether the engine has computed anything since the report before."""
        replica_id = report.replica_id
        usage = self._kv_usage.get(replica_id, 0.0)
        self._kv_usage[replica_id] = report.load.kv_usage
        # A long prompt gives no token before all of its chunks are in memory.
        progress = bool(report.finished) or report.load.kv_usage > usage
        if report.progress:
            # Requests that come and go are no progress: we send and abort them ourselves.
            seen = self._seen.get(replica_id, {})
            progress = progress or any(
                tokens > seen.get(request_id, tokens)
                for request_id, tokens in report.progress.items()
            )
            self._seen[replica_id] = report.progress
        return progress
