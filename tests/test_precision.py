"""One choice of precision: what half precision reaches, what it does not, and that scores and inverses stay exact."""

import json

import pytest
import torch
from support.contract import random_pixels
from support.forks import fork, output, wait
from support.small_training import StripesModule, fit
from support.weights import move_parameters, moved_flow

from flows.layers import AdditiveCoupling, AffineCoupling, FlowStep, Layer, MaskedAutoregressiveFlow, SigmoidCoupling
from flows.layers.networks import GlowNetwork, PaddedConv2d
from flows.measures.bits_per_dim import bits_per_dim
from flows.models.dequantizers import UniformDequantizer
from flows.numerics import full_precision, in_precision
from flows.training.module import FlowModule

CPU = torch.device("cpu")


def test_half_precision_is_for_the_networks_of_couplings_alone():
    flow, types = moved_flow((3, 8, 16)), {}
    for name, module in flow.named_modules():
        if isinstance(module, PaddedConv2d):
            module.register_forward_hook(lambda module, x, z, name=name: types.update({name: z.dtype}))
        elif isinstance(module, Layer) and ".network." not in name:
            module.register_forward_hook(lambda module, x, z, name=name: types.update({name: z[0].dtype}))
    with in_precision("bf16", CPU):
        assert flow.log_prob(torch.rand(2, 3, 8, 16) - 0.5).dtype == torch.float32
    in_networks = {name for name in types if ".coupling.network." in name}
    assert {name for name, kind in types.items() if kind == torch.bfloat16} == in_networks
    assert {types[name] for name in types.keys() - in_networks} == {torch.float32}  # of priors too


def test_half_precision_reaches_masked_networks_and_not_their_scales():
    layer, x = MaskedAutoregressiveFlow(3, hidden_channels=6), torch.randn(2, 3, 4, 4)
    move_parameters(layer)
    exact = layer(x)
    with in_precision("bf16", CPU):
        half = layer(x)
    for ours, theirs in zip(half, exact, strict=True):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("coupling", [AffineCoupling, SigmoidCoupling, AdditiveCoupling])
def test_a_coupling_inverts_exactly_in_half_precision(coupling):
    layer, x = coupling(4, hidden_channels=8), torch.randn(3, 4, 6, 5)
    move_parameters(layer)
    with in_precision("bf16", CPU):
        torch.testing.assert_close(layer.inverse(layer(x)[0]), x, rtol=0, atol=1e-5)


def test_a_step_of_the_optimiser_is_seen_by_the_next_pass_in_half_precision():
    layer, x = AffineCoupling(4, hidden_channels=8), torch.randn(3, 4, 6, 5)
    move_parameters(layer)
    with in_precision("bf16", CPU):
        layer(x)
        move_parameters(layer)
        after = layer(x)[0]
    with in_precision("bf16", CPU):
        assert torch.equal(layer(x)[0], after)


class Watching(UniformDequantizer):
    def forward(self, images, noise):
        assert not torch.is_autocast_enabled("cpu"), "a density of its own would be in half precision"
        return super().forward(images, noise)


def test_densities_are_exact_unless_asked_whatever_autocast_says():
    flow, images, indices = moved_flow((3, 8, 16), dequantizer=Watching), random_pixels(4, (3, 8, 16)), torch.arange(4)
    noise = torch.rand(images.shape)

    def densities():
        return flow.bits_per_dim(images, noise), flow.log_prob(noise - 0.5)

    def measured(**options):
        return bits_per_dim(flow, [(images, indices)], **options)

    exact, score = densities(), measured()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, densities(), exact))
    with in_precision("bf16", CPU):
        assert not any(map(torch.equal, densities(), exact))
        assert torch.equal(measured(), score)
        with full_precision(CPU):
            assert all(map(torch.equal, densities(), exact))
    assert all(map(torch.equal, densities(), exact))
    assert not torch.equal(measured(precision="bf16"), score)


def test_initial_weights_are_the_same_in_every_precision():
    images, states = random_pixels(8, (3, 8, 16)), []
    for precision in ("exact", "bf16"):
        torch.manual_seed(0)
        flow = moved_flow((3, 8, 16))
        with in_precision(precision, CPU):
            flow.initialize(images, torch.Generator().manual_seed(0))
        states.append(torch.nn.utils.parameters_to_vector(flow.parameters()))
    assert torch.equal(*states)


def test_switches_of_gpus_follow_the_choice_and_return():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    gpu, before = torch.device("cuda"), [switch.fp32_precision for switch in switches]
    for precision, setting in (("exact", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with in_precision(precision, gpu):
            assert [switch.fp32_precision for switch in switches] == [setting] * 2
            with full_precision(gpu):
                assert [switch.fp32_precision for switch in switches] == ["ieee"] * 2
            assert [switch.fp32_precision for switch in switches] == [setting] * 2
    assert [switch.fp32_precision for switch in switches] == before


def test_trained_weights_score_alike_with_networks_in_half_precision_and_invert_exactly(tmp_path):
    with in_precision("bf16", CPU):
        trainer, module = fit(tmp_path, max_epochs=12, lr=0.02, check_val_every_n_epoch=12)
    flow, images = module.flow.eval(), StripesModule().load_splits()[1].gather(range(10))
    exact, half = (bits_per_dim(flow, [(images, torch.arange(10))], precision=name) for name in ("exact", "bf16"))
    assert float(trainer.callback_metrics["val/bits_per_dim"]) == pytest.approx(float(exact.mean()), abs=1e-6)
    assert 0 < abs(float(exact.mean() - half.mean())) <= 0.005
    with in_precision("bf16", CPU):
        assert torch.equal(flow.decode(flow.encode(images)), images)


@pytest.mark.slow
def test_a_run_s_steps_are_in_its_precision_and_compiled_and_its_scores_are_exact(tmp_path):
    def watch():
        from flows.training import conclude

        seen, forward, now = set(), GlowNetwork.forward, []

        def named(name, function):
            def call(*arguments, **options):
                now.append(name)
                result = function(*arguments, **options)
                now.pop()
                return result

            return call

        def watched(network, x):
            if now:
                seen.add((now[-1], str(network.first(x).dtype)))
                (tmp_path / "seen.json").write_text(json.dumps(sorted(seen)))
            return forward(network, x)

        GlowNetwork.forward = watched
        FlowStep.compile = lambda step, **options: seen.add(("compiled", "yes"))
        FlowModule.training_step = named("step", FlowModule.training_step)
        FlowModule.bits_per_dim = named("validation", FlowModule.bits_per_dim)
        conclude.bits_per_dim = named("test", conclude.bits_per_dim)

    run = ["experiment=smoke", "data=digits", "trainer=cpu", "trainer.max_epochs=1", "precision=bf16", "run_dir=run"]
    run.append("compile=true")
    assert wait(fork(run, tmp_path, watch)) == 0, output(tmp_path)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == [
        ["compiled", "yes"],
        ["step", "torch.bfloat16"],
        ["test", "torch.float32"],
        ["validation", "torch.float32"],
    ]
