import numpy as np
import pytest
import torch

from predictor.features import Inputs
from predictor.network import SIGMA_MIN, LengthNetwork, NetworkConfig, NetworkError

TEXT, SCALARS, MODELS = 6, 4, 3


def make_network(seed: int = 0, **changes: object) -> LengthNetwork:
    torch.manual_seed(seed)
    shape = {"text_width": TEXT, "scalar_width": SCALARS, "models": MODELS, "hidden": (12, 10, 8)}
    network = LengthNetwork(NetworkConfig(**(shape | changes)))  # type: ignore[arg-type]
    torch.nn.init.normal_(network.offsets)
    return network.eval()


def make_inputs(rows: int = 20, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return Inputs(
        torch.randn(rows, TEXT, generator=generator),
        torch.randn(rows, SCALARS, generator=generator),
        torch.randint(0, MODELS + 1, (rows,), generator=generator),
    )


def with_model(inputs: Inputs, model: int) -> Inputs:
    return Inputs(inputs.text, inputs.scalars, torch.full((len(inputs),), model))


def branch(network: LengthNetwork, which: int, x: torch.Tensor) -> torch.Tensor:
    """One branch by the paper's words, layer by layer, without the model's part."""
    width = network.config.hidden[0]
    first = slice(which * width, (which + 1) * width)
    x = x @ network.first.weight[first].T + network.first.bias[first]
    for norm, linear in zip(network.norms, network.hidden, strict=True):
        x = torch.nn.functional.layer_norm(
            x, x.shape[-1:], norm.gain[which, 0], norm.offset[which, 0]
        )
        x = torch.nn.functional.gelu(x) @ linear.weight[which] + linear.bias[which]
    return torch.nn.functional.gelu(x) @ network.last.weight[which] + network.last.bias[which]


def test_all_branches_at_once_are_each_branch_alone() -> None:
    network, inputs = make_network(members=3, model_width=2), make_inputs()
    network.norms[0].gain.data.normal_()
    x = torch.cat([inputs.text, inputs.scalars], dim=1)
    mu, sigma = network.members(inputs)
    for member in range(3):
        for which, said in ((0, mu[member]), (1, torch.log1p(sigma[member]))):
            at = 2 * member + which
            out = branch(network, at, x)
            known = inputs.model > 0
            own = (inputs.model - 1).clamp(min=0)
            identity = network.offsets[at][own] + (out[:, 1:] * network.weights[at][own]).sum(1)
            expected = out[:, 0] + torch.where(known, identity, 0.0)
            high = expected > 0.3 if which else torch.ones_like(known)  # Above the bend of sigma.
            torch.testing.assert_close(said[high], expected[high], atol=1e-3, rtol=1e-3)


def test_the_forecast_is_the_mean_of_the_members() -> None:
    network, inputs = make_network(members=3), make_inputs()
    mu, sigma = network.members(inputs)
    assert mu.shape == sigma.shape == (3, len(inputs))
    assert (mu.std(dim=0) > 1e-3).all()
    torch.testing.assert_close(network(inputs), (mu.mean(dim=0), sigma.mean(dim=0)))


def test_members_do_not_depend_on_each_other() -> None:
    network, inputs = make_network(members=2), make_inputs()
    network.members(inputs)[0][0].sum().backward()
    for parameter in network.parameters():
        branches = parameter.grad.reshape(4, -1)  # type: ignore[union-attr]
        assert (branches[1:] == 0).all()
    assert network.last.weight.grad is not None
    assert (network.last.weight.grad[0] != 0).any()


def test_targets_are_real_units() -> None:
    network, inputs = make_network(), make_inputs()
    rng = np.random.default_rng(0)
    mu = torch.from_numpy(rng.normal(5.0, 1.2, 100))
    sigma = torch.from_numpy(rng.uniform(0.3, 0.9, 100))
    z = network(inputs)
    network.set_targets(mu, sigma)
    spread = mu.std(correction=0).float()
    torch.testing.assert_close(network(inputs)[0], mu.mean().float() + z[0] * spread)
    for scores in network.normalised(mu, sigma):
        assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
        assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_sigma_is_above_its_least_value_and_keeps_a_gradient_there() -> None:
    network, inputs = make_network(), make_inputs()
    network.last.bias.data[1] = -1.0
    sigma = network(inputs)[1]
    assert (sigma >= SIGMA_MIN).all()
    assert (sigma < SIGMA_MIN + 0.2).any()
    sigma.sum().backward()
    assert network.last.bias.grad is not None
    assert network.last.bias.grad[1] > 0


@pytest.mark.parametrize("width", [0, 2])
def test_the_model_matters_and_the_unknown_one_has_no_part(width: int) -> None:
    network, inputs = make_network(model_width=width), make_inputs()
    mu = [network(with_model(inputs, model))[0] for model in range(MODELS + 1)]
    for one in range(MODELS):
        for other in range(one):
            assert (mu[one] != mu[other]).all()
    network.offsets.data.zero_()
    network.weights.data.zero_()
    torch.testing.assert_close(network(with_model(inputs, 2))[0], mu[0])
    # With an offset alone models rank prompts alike, with more they need not.
    assert (mu[1] - mu[0]).std() > 1e-3 if width else (mu[1] - mu[0]).std() < 1e-6


def test_some_models_are_hidden_while_training_only() -> None:
    drop = {"dropout": (0.0, 0.0, 0.0), "model_dropout": 0.3}
    network, inputs = make_network(**drop), with_model(make_inputs(2000), 1)
    known, unknown = network(inputs)[0], network(with_model(inputs, 0))[0]
    torch.testing.assert_close(network(inputs)[0], known)
    hidden = (network.train()(inputs)[0] - unknown).abs() < (known - unknown).abs() / 2
    assert 0.25 < hidden.float().mean() < 0.35


def test_it_learns_what_the_inputs_tell() -> None:
    network, inputs = make_network(dropout=(0.0, 0.0, 0.0), members=2), make_inputs(200)
    mu = 5 + inputs.text[:, 0] + 0.5 * inputs.model
    sigma = torch.where(inputs.scalars[:, 1] > 0, 0.8, 0.2)
    network.set_targets(mu, sigma)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        said = network.normalised(*network.members(inputs))
        loss = sum(
            ((a - b) ** 2).mean() for a, b in zip(said, network.normalised(mu, sigma), strict=True)
        )
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        got_mu, got_sigma = network(inputs)
    assert float((got_mu - mu).var() / mu.var()) < 0.05
    assert float((got_sigma - sigma).var() / sigma.var()) < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 0}, ">= 1"),
        ({"hidden": ()}, "hidden layer"),
        ({"dropout": (0.1,)}, "one share for each layer"),
        ({"dropout": (0.1, 0.1, 1.0)}, "in \\[0, 1\\)"),
        ({"models": -1}, "-1 models"),
    ],
)
def test_a_shape_that_is_none_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        make_network(**changes)


def test_labels_that_set_no_targets_are_refused() -> None:
    for mu in (torch.tensor([]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(NetworkError, match="labels cannot set the targets"):
            make_network().set_targets(mu, torch.ones_like(mu))


def test_components_keep_what_texts_vary_in() -> None:
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(12, 12))[0][:2]
    text = torch.randn(500, 2) @ (axes * torch.tensor([[3.0], [2.0]])) + 0.01 * torch.randn(500, 12)
    network = LengthNetwork(NetworkConfig(text_width=12, scalar_width=3, models=1, components=2))
    network.set_projection(text)
    assert network.projection is not None
    seen = text @ network.projection
    assert float(seen.var(dim=0).mean()) == pytest.approx(1, abs=0.05)
    back = torch.linalg.lstsq(seen, text).solution
    assert float((seen @ back - text).square().mean()) < 1e-3
    inputs = Inputs(text[:4], torch.zeros(4, 3), torch.ones(4, dtype=torch.int64))
    before = network.eval()(inputs)[0]
    blind = torch.eye(12) - axes.T @ axes  # changes what no component sees
    shifted = Inputs(text[:4] + torch.randn(4, 12) @ blind, inputs.scalars, inputs.model)
    assert torch.allclose(network(shifted)[0], before, atol=1e-2)
    with pytest.raises(NetworkError, match="fewer components"):
        network.set_projection(text[:1])
