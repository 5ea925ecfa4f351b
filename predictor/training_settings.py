"""How a network is trained: everything but the data that decides the result.

Imports no torch, so that a command line can show the defaults without waiting for it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from predictor.errors import PredictorError


class Loss(StrEnum):
    """What is minimised.

    Attributes:
        AUTO: MSE where most training prompts have several samples, else REGRESSION.
        MSE: Squared error of z-scored mu and log1p(sigma) of fitted labels (arXiv:2604.00499).
        REGRESSION: A censored normal regression of ln X for mu, and for sigma the log-t likelihood
            of the samples around that mu. It needs no fitted labels, and one sample per prompt is
            enough.
        NLL: The censored log-t likelihood for both. It is the best where likelihood is the measure,
            and ranks worse: a heavy-tailed likelihood gives up on the prompts it finds hard.
    """

    AUTO = "auto"
    MSE = "mse"
    REGRESSION = "regression"
    NLL = "nll"


SAMPLE_LOSSES = frozenset({Loss.NLL, Loss.REGRESSION})
"""Those that compare a network with the samples themselves."""


class TrainingError(PredictorError):
    """Labels or settings that no network can be trained with; one line with the fix."""


class Schedule(StrEnum):
    """How the learning rates run over the epochs.

    Attributes:
        COSINE: Up for the first tenth of all steps, then down to nothing along a cosine.
        CONSTANT: Without change.
    """

    COSINE = "cosine"
    CONSTANT = "constant"


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one training.

    Attributes:
        loss: What is minimised.
        epochs: Most passes over the training prompts.
        patience: Epochs without a better validation likelihood after which training ends.
        batch_size: Prompts per step.
        learning_rate: Of the heads, at the start.
        encoder_learning_rate: Of the tuned layers of the encoder, at the start.
        schedule: How both go on.
        weight_decay: Of AdamW.
        gradient_clip: Largest norm of a step's gradient.
        hidden: Widths of the hidden layers of each head.
        dropout: Share dropped after each of them.
        components: Principal components of the text features that the heads read; 0: all features.
        text_dropout: Share of the text features dropped.
        model_width: Width of what a model's identity is multiplied with beside its own offset
            (`network.NetworkConfig`).
        model_dropout: Share of prompts whose model is hidden, so that unknown models are learnt.
        members: Independent heads whose forecasts are averaged.
        oversample: Whether long and uncertain answers count more (`losses.oversampling`).
        tune_layers: Last layers of the encoder that are trained too; 0: it stays as it is.
        encoder: Name of the encoder (`encoder.EncoderSpec`).
        encoder_layers: Layers of it whose hidden states are pooled.
        encoder_max_tokens: Tokens that it reads of a prompt.
        encoder_tail_tokens: How many of them are taken from the end of a longer prompt.
        half: Whether the weights are saved in half precision, which moves them by 0.05 % at most.
        coverage: Share of answers that the reported interval should contain.
        cap_tokens: Length that counts as cut where the labels name no cap; None: none does.
        leave_out: Models that the network must not see, to measure transfer to them.
        seed: Of the weights, the order of the prompts and the dropout.

    Raises:
        TrainingError: A value is out of range.
    """

    loss: Loss = Loss.AUTO
    epochs: int = 20
    patience: int = 6
    batch_size: int = 128
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 2e-5
    schedule: Schedule = Schedule.COSINE
    weight_decay: float = 0.02
    gradient_clip: float = 1.0
    hidden: tuple[int, ...] = (256, 256, 128)
    dropout: tuple[float, ...] = (0.2, 0.2, 0.1)
    components: int = 256
    text_dropout: float = 0.1
    model_width: int = 0
    model_dropout: float = 0.15
    members: int = 3
    oversample: bool = False
    tune_layers: int = 0
    encoder: str = "all-MiniLM-L6-v2"
    encoder_layers: tuple[int, ...] = (-3, -2, -1)
    encoder_max_tokens: int = 256
    encoder_tail_tokens: int = 64
    half: bool = False
    coverage: float = 0.9
    cap_tokens: int | None = None
    leave_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "members"):
            value = getattr(self, name)
            if value < 1:
                raise TrainingError(f"{name} is {value}, must be >= 1")
        for name in ("learning_rate", "encoder_learning_rate", "gradient_clip"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise TrainingError(f"{name} is {value}, must be finite and > 0")
        if not 0 <= self.weight_decay < float("inf"):
            raise TrainingError(f"weight_decay is {self.weight_decay}, must be finite and >= 0")
        if not 0 < self.coverage < 1:
            raise TrainingError(f"coverage is {self.coverage}, must be above 0 and below 1")
        for name in ("tune_layers", "seed", "components", "model_width"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}, must be >= 0")
