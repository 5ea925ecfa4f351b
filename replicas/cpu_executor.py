"""vLLM's engine on CPU cores as one process, without a second one that spins beside it."""

from __future__ import annotations

import os

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class CpuExecutor(UniProcExecutor):
    """Runs the model in the process of the engine core, on the cores that are bound to it.

    By default vLLM's CPU build computes in a worker process, for which the engine core waits by
    polling shared memory: a whole core that does nothing, beside each core that computes. It wants
    the second process only to give it OpenMP's environment; what that says is set here instead.

    Only the calling thread is bound, and OpenMP's, which it starts: the engine core's threads that
    talk to the front end are there already and stay off the cores that compute.

    For `distributed_executor_backend`, which takes an import path, and one worker. Touches
    `OMPProcessManager.cpu_lists`: for each worker the cores that `VLLM_CPU_OMP_THREADS_BIND` names,
    or those that vLLM picks; none when it is "nobind".
    """

    def _init_executor(self) -> None:
        if bound := OMPProcessManager(self.vllm_config).cpu_lists:
            os.sched_setaffinity(0, bound[0])
            torch.set_num_threads(len(bound[0]))
        super()._init_executor()
