"""The training loop: minibatches, a checkpoint after each epoch, an end by held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from policies.batch import Floats, Ints
from predictor import losses
from predictor.checkpoint import Checkpoint
from predictor.conformal import likeliest
from predictor.encoder import TextEncoder
from predictor.examples import Examples
from predictor.features import Inputs, InputScaler
from predictor.network import LengthNetwork
from predictor.training_settings import (
    SAMPLE_LOSSES,
    Loss,
    Schedule,
    TrainingError,
    TrainingSettings,
)
from predictor.training_watch import Epoch, TrainingWatch

_EVALUATION_ROWS = 1024
_WARM_UP = 0.1  # share of all steps
_COLD = 0.01  # so that the first step moves something


@dataclass(slots=True)
class Trainer:
    """Trains one network.

    Attributes:
        network: What is trained, on its device.
        scaler: Of its inputs.
        settings: How.
        encoder: Has layers to be tuned; None: the encoder stays as it is.
        history: The epochs so far.
    """

    network: LengthNetwork
    scaler: InputScaler
    settings: TrainingSettings
    encoder: TextEncoder | None = None
    history: list[Epoch] = field(default_factory=list)
    _best: dict[str, Any] = field(default_factory=dict)

    def train(
        self,
        training: Examples,
        validation: Examples,
        checkpoint: Checkpoint,
        watch: TrainingWatch,
    ) -> None:
        """Train until validation stops improving or the epochs are over; the best weights stay.

        All examples lie on the network's device.

        Args:
            training: What is learnt.
            validation: What decides which epoch was the best.
            checkpoint: Holds the state between epochs; what it holds already is taken up.
            watch: Told of each step's prompts and of each epoch, those taken up included.

        Raises:
            TrainingError: The forecasts are not finite any more.
            CheckpointError: The saved state cannot be read.
        """
        optimizer = self._optimizer()
        self._restore(checkpoint, optimizer)
        for epoch in self.history:
            watch.advance(len(training))
            watch.epoch(epoch)
        targets = _Targets.of(training, self.network, self.settings)
        while not self._over():
            number = len(self.history) + 1
            with reproducible([self.settings.seed, number], self._device):
                loss = self._epoch(number, training, targets, optimizer, watch)
            nll = self._validation_nll(validation)
            best = not self.history or nll < min(epoch.nll for epoch in self.history)
            self.history.append(Epoch(number, loss, nll, best))
            if best:
                self._best = self._weights()
            checkpoint.save(self._state(optimizer))
            watch.epoch(self.history[-1])
        self._load_weights(self._best)

    def predict(self, examples: Examples) -> tuple[Floats, Floats]:
        """Mu and sigma as the network gives them, before calibration, each (n,)."""
        self._mode(training=False)
        columns = []
        with torch.inference_mode():
            for start in range(0, len(examples), _EVALUATION_ROWS):
                rows = np.arange(start, min(start + _EVALUATION_ROWS, len(examples)))
                columns.append(torch.stack(self.network(self._inputs(examples, rows))).cpu())
        mu, sigma = torch.cat(columns, dim=1).double().numpy()
        return mu, sigma

    @property
    def _device(self) -> torch.device:
        return self.network.target_mean.device

    def _over(self) -> bool:
        """Whether the epochs are used up, or none of the last `patience` was the best."""
        last = self.history[-self.settings.patience :]
        stale = len(last) == self.settings.patience and not any(epoch.best for epoch in last)
        return stale or len(self.history) >= self.settings.epochs

    def _optimizer(self) -> torch.optim.AdamW:
        settings = self.settings
        groups = [{"params": list(self.network.parameters()), "base": settings.learning_rate}]
        if self.encoder is not None:
            tuned = self.encoder.tunable(settings.tune_layers)
            groups.append({"params": tuned, "base": settings.encoder_learning_rate})
        return torch.optim.AdamW(
            groups, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def _epoch(
        self,
        number: int,
        training: Examples,
        targets: _Targets,
        optimizer: torch.optim.AdamW,
        watch: TrainingWatch,
    ) -> float:
        """One pass over the training prompts in random order; the mean loss."""
        settings = self.settings
        self._mode(training=True)
        order = np.random.default_rng([settings.seed, number]).permutation(len(training))
        starts = range(0, len(order), settings.batch_size)
        total = 0.0
        for step, start in enumerate(starts):
            progress = (number - 1 + step / len(starts)) / settings.epochs
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * _rate(settings.schedule, progress)
            rows = order[start : start + settings.batch_size]
            loss = targets.loss(self.network, self._inputs(training, rows), rows, progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
            optimizer.step()
            total += float(loss.detach()) * len(rows)
            watch.advance(len(rows))
        return total / len(order)

    def _inputs(self, examples: Examples, rows: Ints) -> Inputs:
        at = torch.from_numpy(rows)
        if self.encoder is None:
            text = examples.pooled[torch.from_numpy(examples.text_row[rows])]
        else:
            distinct, back = np.unique(examples.text_row[rows], return_inverse=True)
            pooled = self.encoder.pool([examples.tokens[row] for row in distinct])
            text = self.scaler.text(pooled)[torch.from_numpy(back)]
        return Inputs(text, examples.scalars[at], examples.model[at])

    def _validation_nll(self, validation: Examples) -> float:
        labels = validation.labels
        mu, sigma = self.predict(validation)
        log_x = np.log(np.maximum(labels.output_tokens, 1))
        residual = (log_x - mu[:, None]) / sigma[:, None]
        if not np.isfinite(residual).all():
            raise TrainingError(
                f"the forecasts are not finite after epoch {len(self.history) + 1}; lower the "
                f"learning rate, which is {self.settings.learning_rate:g}"
            )
        row, column = np.nonzero(labels.present)
        log_x, cut = log_x[row, column], labels.censored[row, column]
        weight = labels.weights[row, column] * validation.importance[row]
        best = likeliest(log_x - mu[row], sigma[row], cut, weight)
        return float((weight @ np.where(cut, 0.0, log_x) - best.likelihood) / weight.sum())

    def _mode(self, *, training: bool) -> None:
        self.network.train(training)
        if self.encoder is not None:
            self.encoder.train(training)

    def _weights(self) -> dict[str, Any]:
        network = {k: v.detach().to("cpu", copy=True) for k, v in self.network.state_dict().items()}
        return {
            "network": network,
            "encoder": {} if self.encoder is None else self.encoder.tuned_state(),
        }

    def _load_weights(self, weights: dict[str, Any]) -> None:
        self.network.load_state_dict(weights["network"])
        if self.encoder is not None:
            self.encoder.load_tuned(weights["encoder"])

    def _state(self, optimizer: torch.optim.AdamW) -> dict[str, Any]:
        return {
            "weights": self._weights(),
            "best": self._best,
            "optimizer": optimizer.state_dict(),
            "history": msgspec.to_builtins(self.history),
        }

    def _restore(self, checkpoint: Checkpoint, optimizer: torch.optim.AdamW) -> None:
        state = checkpoint.load()
        if state is not None:
            self.history[:] = msgspec.convert(state["history"], list[Epoch])
            self._best = state["best"]
            self._load_weights(state["weights"])
            optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True, slots=True)
class _Targets:
    """What a network's outputs are compared with, on its device: samples or fitted labels."""

    kind: Loss
    columns: tuple[torch.Tensor, ...]
    importance: torch.Tensor

    @classmethod
    def of(cls, examples: Examples, network: LengthNetwork, settings: TrainingSettings) -> _Targets:
        labels, fitted = examples.labels, examples.fitted
        device = network.target_mean.device
        importance = examples.importance
        if settings.oversample:
            importance = importance * losses.oversampling(fitted.mu, fitted.sigma)

        def column(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        columns: tuple[torch.Tensor, ...]
        if settings.loss in SAMPLE_LOSSES:
            cut = torch.tensor(labels.censored, device=device)
            log_x = np.log(np.maximum(labels.output_tokens, 1))
            columns = column(log_x), cut, column(labels.weights)
        else:
            columns = network.normalised(column(fitted.mu), column(fitted.sigma))
        return cls(settings.loss, columns, column(importance))

    def loss(
        self, network: LengthNetwork, inputs: Inputs, rows: Ints, progress: float
    ) -> torch.Tensor:
        """Mean loss of a minibatch, summed over the members, which share no weights."""
        at = torch.from_numpy(rows).to(self.importance.device)
        mu, sigma = network.members(inputs)
        if self.kind in SAMPLE_LOSSES:
            log_x, cut, weight = (column[at] for column in self.columns)
            if self.kind is Loss.REGRESSION:
                # Sigma learns to be the spread around mu, which it must not bend to its liking.
                z_mu, _ = network.normalised(mu, sigma)
                z_x, _ = network.normalised(log_x, sigma.new_zeros(()))
                each = losses.regression(z_mu, z_x, cut, weight)
                each = each + losses.nll(mu.detach(), sigma, log_x, cut, weight)
            else:
                each = losses.nll(mu, sigma, log_x, cut, weight)
        else:
            label_mu, label_sigma = (column[at] for column in self.columns)
            each = losses.mse(network.normalised(mu, sigma), (label_mu, label_sigma), progress)
        return (each * self.importance[at]).mean(dim=1).sum()


def _rate(schedule: Schedule, progress: float) -> float:
    """Factor of the learning rate when a share `progress` of all epochs is done."""
    if schedule is Schedule.CONSTANT:
        return 1.0
    if progress < _WARM_UP:
        return (progress + _COLD) / (_WARM_UP + _COLD)
    return (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2


@contextmanager
def reproducible(seed: list[int], device: torch.device) -> Iterator[None]:
    """Draws of torch that follow from the seed alone; what it had before is put back after.

    On a CPU sums are made in a fixed order too.
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        torch.use_deterministic_algorithms(was_deterministic or device.type == "cpu")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
