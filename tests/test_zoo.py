import pytest
import torch

from zoo import ASKED, ZOO, ZooModel, build, draw


def outputs(model: ZooModel, network: torch.nn.Module, n: int = 16) -> list[torch.Tensor]:
    with torch.no_grad():
        result = network(*draw(model, n))
    return (
        list(result.values())
        if isinstance(result, dict)
        else list(result)
        if isinstance(result, tuple)
        else [result]
    )


def test_the_seventeen_families_are_there_and_names_are_unique():
    assert len(ASKED) == 17
    assert len({model.name for model in ZOO}) == len(ZOO)


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.name)
def test_settled_networks_tell_their_inputs_apart(model: ZooModel):
    for output in outputs(model, build(model)):
        assert output.isfinite().all()
        # A dead or constant network says the same of every input: quantizing it proves nothing.
        assert output.std(0).mean() > 0.3 * (output.std() + 1e-6)
        assert len(output.flatten(1).argmax(1).unique()) > 1


@pytest.mark.parametrize("model", ZOO, ids=lambda model: model.name)
def test_settled_networks_do_not_amplify_small_noise(model: ZooModel):
    network = build(model)
    clean = draw(model, 8)
    generator = torch.Generator().manual_seed(9)
    noisy = tuple(
        value + 0.01 * value.std() * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for value in clean
    )
    with torch.no_grad():
        pairs = (network(*clean), network(*noisy))
    first, second = (
        list(p.values()) if isinstance(p, dict) else list(p) if isinstance(p, tuple) else [p] for p in pairs
    )
    for a, b in zip(first, second, strict=True):
        # 40 dB at the input; a chaotic network would lose it all.
        assert ((a - b) ** 2).sum() <= 0.01 * (a**2).sum()


def test_building_twice_gives_the_same_network_whatever_the_global_random_state():
    model = ZOO[0]
    torch.manual_seed(1)
    first = build(model).state_dict()
    torch.manual_seed(2)
    second = build(model).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc.weight"], build(model, seed=5).state_dict()["fc.weight"])


def test_other_seeds_draw_other_samples():
    model = ZOO[0]
    assert torch.equal(draw(model, 2, seed=3)[0], draw(model, 2, seed=3)[0])
    assert not torch.equal(draw(model, 2, seed=3)[0], draw(model, 2, seed=4)[0])
