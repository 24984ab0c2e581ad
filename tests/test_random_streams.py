"""Random draws keyed by (seed, step, layer, microbatch): the same under every schedule and cut."""

import contextlib
import copy
import gc
import threading

import pytest
import torch
from plain_loop import assert_same_gradients, batch, same_bits, twins
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipert

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 4


class Noise(nn.Module):
    """Adds what it draws."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + self.draw(x)


DRAWS = {
    "rand": lambda x: torch.rand(x.shape),
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(x.shape),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(0, 9, x.shape).float(),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "randperm": lambda x: torch.randperm(x.numel()).reshape(x.shape).float(),
    "normal": lambda x: torch.normal(x.detach(), 1.0),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "uniform_": lambda x: torch.empty_like(x).uniform_(),
    "bernoulli": lambda x: torch.bernoulli(torch.full(x.shape, 0.5)),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "geometric_": lambda x: torch.empty_like(x).geometric_(0.5),
    "cauchy_": lambda x: torch.empty_like(x).cauchy_(),
    "log_normal_": lambda x: torch.empty_like(x).log_normal_(),
    "random_": lambda x: torch.empty_like(x).random_(0, 9),
    "poisson": lambda x: torch.poisson(torch.full(x.shape, 2.0)),
    "binomial": lambda x: torch.binomial(torch.full(x.shape, 9.0), torch.full(x.shape, 0.5)),
    "multinomial": lambda x: torch.multinomial(torch.ones(x.shape), x.shape[1]).float(),
    "gumbel_softmax": lambda x: nn.functional.gumbel_softmax(x),
    "rrelu": lambda x: nn.functional.rrelu(x, training=True),
    "dropout": lambda x: nn.functional.dropout(x, 0.5),
    "alpha_dropout": lambda x: nn.functional.alpha_dropout(x, 0.5, training=True),
    "dropout1d": lambda x: nn.functional.dropout1d(x[None], 0.5)[0],
    "attention": lambda x: nn.functional.scaled_dot_product_attention(
        x[None], x[None], x[None], dropout_p=0.5
    )[0],
    "init": lambda x: nn.init.trunc_normal_(torch.empty_like(x)),
    "distribution": lambda x: torch.distributions.Gamma(2.0, 1.0).sample(x.shape),
}


def model(seed=0):
    """Eight layers, half of them random, in nested Sequentials."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 8),
        nn.Sequential(nn.Dropout(0.4), nn.Linear(8, 8), nn.Tanh()),
        nn.Dropout(0.3),
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2)),
        nn.Linear(8, 8),
    )


def run(stages, steps=2, num_microbatches=MICROBATCHES, **options):
    """Losses of a few steps, the pipeline closed."""
    x, y = batch(8)
    options = {"loss_fn": mse, "rng_seed": 5, **options}
    with pipert.Pipeline(stages, num_microbatches=num_microbatches, **options) as pipe:
        return torch.stack([pipe.step(x, target=y).losses for _ in range(steps)])


def reference(module, **options):
    """One rank, one stage, gpipe."""
    return run(pipert.split(module, num_stages=1), schedule="gpipe", **options)


# --- where a thread's draws come from -------------------------------------------------------------


def keyed(module, x, step=0, index=0):
    with pipert.KeyedRandom(module, rng_seed=1) as random, random.microbatch(step, index):
        return module(x)


@pytest.mark.parametrize("name", DRAWS)
def test_operator_draws_from_the_threads_generator(name):
    module, x = Noise(DRAWS[name]), torch.randn(6, 8)
    before = torch.get_rng_state()
    first = keyed(module, x)
    assert same_bits(torch.get_rng_state(), before)  # the process's generator was left alone
    assert same_bits(first, keyed(module, x))
    assert not torch.equal(first, keyed(module, x, index=1))
    assert not torch.equal(first, keyed(module, x, step=1))


def test_a_generator_that_is_named_is_used():
    module = Noise(lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.zeros(3, 3)
    assert same_bits(keyed(module, x), keyed(module, x, index=1))


def test_other_threads_draw_as_ever():
    module = Noise(torch.rand_like)
    drawn = []
    with pipert.KeyedRandom(module, rng_seed=1) as random, random.microbatch(0, 0):
        torch.manual_seed(3)  # of this thread's generator
        thread = threading.Thread(target=lambda: drawn.append(torch.get_rng_state()))
        thread.start()
        thread.join()
        assert not same_bits(torch.get_rng_state(), drawn[0])
    assert same_bits(torch.get_rng_state(), drawn[0])


def test_recurrent_and_attention_dropout_draw_from_the_threads_generator():
    x = torch.randn(2, 5, 8)
    for module in (
        nn.LSTM(8, 8, num_layers=2, dropout=0.5),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5),
    ):
        results = [keyed(module, x, index=i) for i in (0, 0, 1)]
        first, again, other = (r[0] if isinstance(r, tuple) else r for r in results)
        assert same_bits(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_module_draws_from_the_threads_generator(backend):
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    compiled = torch.compile(module, backend=backend)
    x = torch.randn(4, 8)
    assert same_bits(keyed(compiled, x), keyed(compiled, x))
    assert not torch.equal(keyed(compiled, x), keyed(compiled, x, index=1))


def test_autocast_vmap_and_modes_see_the_draw_as_it_was_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    generators = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bernoulli_.float:
                generators.append((kwargs or {}).get("generator"))
            return func(*args, **(kwargs or {}))

    x = torch.randn(4, 8)
    module = nn.Dropout(0.5)
    expected = keyed(module, x)
    with Watch():
        assert same_bits(keyed(module, x), expected)
    assert generators
    assert all(generator is None for generator in generators)
    with torch.autocast("cpu"):
        assert same_bits(keyed(module, x), expected)
    noisy = torch.func.vmap(lambda row: row + torch.rand_like(row), randomness="different")
    assert same_bits(keyed(Noise(noisy), x), keyed(Noise(noisy), x))


# --- the same bits everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("name", pipert.schedules())
def test_dropout_has_the_same_bits_under_every_schedule(name):
    schedule = smallest(name, ranks=2)
    if schedule.is_asynchronous:
        pytest.skip("asynchronous schedules don't run")
    one, other = twins(model)
    expected = reference(one)
    stages = pipert.split(other, num_stages=schedule.placement.stages_per_copy)
    assert same_bits(run(stages, schedule=schedule), expected)


@pytest.mark.parametrize("name", ["1f1b", "chimera", "dualpipe"])
def test_a_layer_that_stands_twice_has_the_same_bits_under_every_schedule(name):
    def repeated():
        torch.manual_seed(0)
        noise = nn.Dropout(0.4)
        return nn.Sequential(nn.Linear(8, 8), noise, nn.Linear(8, 8), noise, nn.Tanh(), noise)

    schedule = smallest(name, ranks=2)
    stages = pipert.split(repeated(), num_stages=schedule.placement.stages_per_copy)
    assert same_bits(run(stages, schedule=schedule), reference(repeated()))


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 2], [3, 1]])
def test_layers_that_share_their_hooks_have_the_same_bits_under_every_partition(sizes):
    torch.manual_seed(0)
    noise = nn.Dropout(0.4)
    layers = nn.Sequential(noise, nn.Linear(8, 8), copy.copy(noise), nn.Linear(8, 8))
    expected = reference(copy.deepcopy(layers))
    stages = pipert.split(layers, num_stages=len(sizes), balance=sizes)
    assert same_bits(run(stages, schedule="1f1b"), expected)


def smallest(name, ranks):
    """The schedule of that name with the fewest stages."""
    for stages in (ranks, 2 * ranks):
        with contextlib.suppress(ValueError):
            return pipert.Schedule.build(
                name, num_ranks=ranks, num_microbatches=MICROBATCHES, num_stages=stages
            )
    raise AssertionError(f"{name} has neither {ranks} nor {2 * ranks} stages")


@pytest.mark.parametrize("sizes", [[1, 7], [2, 6], [4, 4], [7, 1], [3, 2, 3], [1] * 8])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_dropout_has_the_same_bits_and_gradients_under_every_partition(sizes, recompute):
    one, other = twins(model)
    x, y = batch(8)
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "rng_seed": 5}
    stages = pipert.split(other, num_stages=len(sizes), balance=sizes)
    with (
        pipert.Pipeline(pipert.split(one, num_stages=1), schedule="gpipe", **options) as plain,
        pipert.Pipeline(stages, schedule="1f1b", recompute=recompute, **options) as pipe,
    ):
        for _ in range(2):
            assert same_bits(pipe.step(x, target=y).losses, plain.step(x, target=y).losses)
            assert_same_gradients(pipe, one)
            assert same_bits(pipe.evaluate(x, target=y).losses, plain.evaluate(x, target=y).losses)


class Branches(nn.Module):
    """Runs no children in order: a value passes over blocks, and two layers are called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.4), nn.Tanh()) for _ in range(4)
        )
        self.noise = nn.Dropout(0.3)

    def forward(self, x):
        kept = self.noise(self.first(x))
        x = kept
        for block in self.blocks:
            x = x + nn.functional.dropout(block(x), 0.2)
        return self.noise(x) * self.first(kept)


@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize(
    "at", [["blocks.3"], ["blocks.1", "blocks.2"], [f"blocks.{i}" for i in range(4)]]
)
def test_dropout_of_a_traced_model_has_the_same_bits_under_every_cut(at, recompute):
    torch.manual_seed(0)
    one = Branches()
    other = copy.deepcopy(one)
    x, y = batch(8)

    def cut(model, at):
        return pipert.split(model, at=at, example_args=(x[:2],), by="trace")

    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "rng_seed": 5}
    with (
        pipert.Pipeline(cut(one, ["blocks.0"]), schedule="gpipe", **options) as expected,
        pipert.Pipeline(cut(other, at), schedule="zb_h1", recompute=recompute, **options) as pipe,
    ):
        for _ in range(2):
            losses = pipe.step(x, target=y).losses
            assert same_bits(losses, expected.step(x, target=y).losses)
            found = dict(pipe.named_parameters())
            for name, parameter in expected.named_parameters():
                torch.testing.assert_close(found[name].grad, parameter.grad)
            assert same_bits(
                pipe.evaluate(x, target=y).losses, expected.evaluate(x, target=y).losses
            )
        assert not same_bits(losses, pipe.evaluate(x, target=y).losses)


def test_a_copy_of_a_traced_stage_knows_its_layers():
    x, _ = batch(8)
    stages = pipert.split(Branches(), at=["blocks.2"], example_args=(x,), by="trace")
    for index, names in enumerate(
        [["first", "noise", "blocks.0", "blocks.1"], ["blocks.2", "blocks.3", "noise", "first"]]
    ):
        for stage in (stages[index], copy.deepcopy(stages[index])):
            assert stage.pipert_layers() == [stage.get_submodule(name) for name in names]


def test_a_plain_loop_draws_the_same_with_keyed_random():
    one, other = twins(model)
    x, y = batch(8)
    losses = run(pipert.split(other, num_stages=3), schedule="1f1b")
    with pipert.KeyedRandom(one, rng_seed=5) as random:
        assert random.num_layers == 8
        for step in range(2):
            for i, (inputs, targets) in enumerate(
                zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), strict=True)
            ):
                with random.microbatch(step, i):
                    loss = mse(one(inputs), targets)
                loss.backward(torch.full_like(loss, 1 / MICROBATCHES))
                assert same_bits(loss.detach(), losses[step, i])
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert same_bits(p.grad, q.grad), name


def test_streams_differ_by_seed_step_layer_and_microbatch():
    stages = pipert.split(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), num_stages=1)
    x = torch.ones(2, 64, requires_grad=True)
    masks = []
    for seed in (1, 2):
        with pipert.Pipeline(
            stages, num_microbatches=2, rng_seed=seed, loss_fn=lambda o: o.sum()
        ) as pipe:
            for step in (0, 1):
                pipe.step_index = step
                masks += list(pipe(x).clone())
                masks += list(pipe.step(x, return_outputs=True).outputs.clone())
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)
    one = keyed(stages[0], torch.ones(1, 64))
    assert set(one.unique().tolist()) == {0.0, 4.0}
    assert 0 < (one == 4).sum() < 32  # two masks, not the same twice: a quarter survives


def splitmix64(x):
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_seeds_of_streams_are_the_documented_ones():
    found = {}

    class Ask(nn.Linear):
        def forward(self, x):
            now = pipert.current_microbatch()
            seed = torch.random.initial_seed()
            found[now.training, now.step, self.layer, now.index] = seed
            return super().forward(x)

    layers = [Ask(8, 8) for _ in range(3)]
    for number, layer in enumerate(layers):
        layer.layer = number
    x, y = batch(8)

    def loss_fn(output, target):
        now = pipert.current_microbatch()
        found[now.training, now.step, -1, now.index] = torch.random.initial_seed()
        return mse(output, target)

    stages = pipert.split(nn.Sequential(*layers), num_stages=2)
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=loss_fn, rng_seed=2**63 + 9) as pipe:
        pipe.step(x, target=y)
        pipe.step(x, target=y)
        pipe.evaluate(x, target=y)
    assert len(found) == 3 * 4 * 2
    for (training, step, layer, index), seed in found.items():
        expected = splitmix64(2**63 + 9)
        for number in (0 if training else 1, step, layer % 2**64, index):
            expected = splitmix64(expected ^ number)
        assert seed % 2**64 == expected
    assert len(set(found.values())) == len(found)


def test_operators_of_other_libraries_draw_from_the_threads_generator():
    library = torch.library.Library("pipert_test_draws", "FRAGMENT")
    library.define("add_noise(Tensor x, *, Generator? generator=None) -> Tensor")
    library.impl(
        "add_noise",
        lambda x, *, generator=None: x + torch.rand(x.shape, generator=generator),
        "CPU",
    )
    x = torch.zeros(4, 8)
    module = Noise(lambda x: torch.ops.pipert_test_draws.add_noise(x))
    assert same_bits(keyed(module, x), keyed(module, x))
    assert not torch.equal(keyed(module, x), keyed(module, x, index=1))


def test_step_index_counts_and_restores():
    stages = pipert.split(model(), num_stages=2)
    x, y = batch(8)
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "rng_seed": 5}
    with pipert.Pipeline(stages, **options) as pipe:
        losses = [pipe.step(x, target=y).loss for _ in range(3)]
        pipe.evaluate(x, target=y)
        assert pipe.step_index == 3
    with pipert.Pipeline(stages, **options) as again:
        again.step_index = 2
        assert same_bits(again.step(x, target=y).loss, losses[2])
        with pytest.raises(ValueError, match="step_index must be a number of steps"):
            again.step_index = -1


def test_a_failed_step_is_drawn_again():
    class Sometimes(nn.Module):
        fails = False

        def forward(self, x):
            if self.fails:
                raise RuntimeError("no")
            return x

    layer = Sometimes()
    stages = pipert.split(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), layer), num_stages=2)
    x, y = batch(8)
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "rng_seed": 5}
    with pipert.Pipeline(stages, **options) as pipe:
        expected = pipe.step(x, target=y).losses
        pipe.step_index = 0
        layer.fails = True
        with pytest.raises(pipert.PipelineError):
            pipe.step(x, target=y)
        layer.fails = False
        assert pipe.step_index == 0
        assert same_bits(pipe.step(x, target=y).losses, expected)


def test_the_loss_function_draws_from_a_stream_of_its_own():
    def loss_fn(output, target):
        return mse(nn.functional.dropout(output, 0.5), target)

    one, other = twins(model)
    expected = reference(one, loss_fn=loss_fn)
    losses = run(pipert.split(other, num_stages=3), loss_fn=loss_fn, recompute="all")
    assert same_bits(losses, expected)


def test_a_layer_that_is_used_twice_draws_twice():
    drop = nn.Dropout(0.5)

    def build():
        torch.manual_seed(0)
        return nn.Sequential(drop, nn.Linear(8, 8), drop, nn.Linear(8, 8), drop)

    expected = reference(build())
    stages = [build()[:3], build()[3:]]
    assert same_bits(run(pipert.Stages(stages)), expected)
    masks = [keyed(build()[i : i + 1], torch.ones(4, 8)) for i in (0, 2)]
    assert same_bits(*masks)  # alone each is layer 0
    both = nn.Sequential(drop, drop)
    assert (keyed(both, torch.ones(64, 8)) == 4).float().mean() < 0.4


def test_checkpointed_blocks_draw_the_same_mask_twice():
    class Block(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.reentrant = reentrant

        def inner(self, x):
            return nn.functional.dropout(self.linear(x).tanh(), 0.5)

        def forward(self, x):
            if self.reentrant is None:
                return self.inner(x)
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    def build(reentrant):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), *(Block(reentrant) for _ in range(4)))

    x, y = batch(8)
    for seed in (5, None):
        for schedule in ("1f1b", "zb_h1"):
            found = []
            for reentrant in (None, False, True):
                stages = pipert.split(build(reentrant), num_stages=2)
                options = {"schedule": schedule, "rng_seed": seed, "loss_fn": mse}
                with pipert.Pipeline(stages, num_microbatches=MICROBATCHES, **options) as pipe:
                    torch.manual_seed(3)
                    losses = pipe.step(x, target=y).losses
                    found.append([losses, *(p.grad for p in pipe.parameters())])
            for other in found[1:]:
                assert all(map(same_bits, other, found[0]))


def test_hooks_are_gone_after_close():
    stages = pipert.split(model(), num_stages=2)
    hooks = {m: len(m._forward_pre_hooks) for s in stages for m in s.modules()}
    pipe = pipert.Pipeline(stages, num_microbatches=2, rng_seed=1)
    own = [h for s in stages for m in s.modules() for h in m._forward_pre_hooks.values()]
    assert own
    assert all(isinstance(hook, pipert._C.LayerHook) for hook in own)
    pipe.close()
    assert hooks == {m: len(m._forward_pre_hooks) for s in stages for m in s.modules()}


@pytest.mark.parametrize("seed", [None, 1])
def test_hooks_are_gone_with_a_pipeline_that_nobody_closes(seed):
    class Ask(nn.Linear):
        def forward(self, x, microbatch_index=None):
            return super().forward(x)

    stages = pipert.split(nn.Sequential(nn.Dropout(0.5), Ask(8, 8)), num_stages=1)
    x, y = batch(8)
    pipe = pipert.Pipeline(stages, num_microbatches=2, rng_seed=seed, loss_fn=mse)
    pipe.step(x, target=y)
    assert any(m._forward_pre_hooks for m in stages[0].modules())
    del pipe
    gc.collect()
    assert not any(m._forward_pre_hooks for m in stages[0].modules())


def test_hooks_are_gone_with_a_keyed_random_that_nobody_closes():
    module = model()
    keyed_random = pipert.KeyedRandom(module, rng_seed=1)
    assert any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())
    del keyed_random
    gc.collect()
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.modules())


class Named(nn.Sequential):
    """An nn.Sequential by another name."""


class Odd(nn.Sequential):
    """Runs its children in an order of its own: one layer."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


@pytest.mark.parametrize(("kind", "num_layers"), [(Named, 8), (Odd, 1)])
def test_a_subclass_that_runs_as_a_sequential_has_its_layers(kind, num_layers):
    one, other = twins(lambda: kind(*model()))
    with pipert.KeyedRandom(one, rng_seed=5) as random:
        assert random.num_layers == num_layers
    if kind is Named:
        expected = reference(nn.Sequential(*one))
        assert same_bits(run([other], schedule="gpipe"), expected)
        cut = [kind(*list(other)[:2]), kind(*list(other)[2:])]
        assert same_bits(run(cut, schedule="1f1b"), expected)


def test_modules_can_be_copied_and_saved_meanwhile(tmp_path):
    class Ask(nn.Linear):
        def forward(self, x, microbatch_index=None):
            return super().forward(x)

    stages = pipert.split(nn.Sequential(nn.Dropout(0.5), Ask(8, 8)), num_stages=1)
    x, y = batch(8)
    with pipert.Pipeline(stages, num_microbatches=2, rng_seed=1, loss_fn=mse) as pipe:
        twin = copy.deepcopy(stages[0])
        torch.save(nn.Sequential(*stages[0][:1]), tmp_path / "model.pt")
        saved = torch.load(tmp_path / "model.pt", weights_only=False)
        expected = pipe(x)
        for copied in (twin, saved):
            copied(x)  # as any module
        with pipert.Pipeline([twin], num_microbatches=2, rng_seed=1, loss_fn=mse) as other:
            assert same_bits(other(x), expected)
        assert pipe.step(x, target=y).loss is not None


def test_two_pipelines_share_modules_and_number_them_each_its_own_way():
    module = model()
    expected = reference(copy.deepcopy(module), steps=1)
    x, y = batch(8)
    options = {"num_microbatches": MICROBATCHES, "loss_fn": mse, "rng_seed": 5}
    tail = pipert.split(module[1:], num_stages=1)
    whole = pipert.split(module, num_stages=2)
    with pipert.Pipeline(tail, **options), pipert.Pipeline(whole, **options) as pipe:
        assert same_bits(pipe.step(x, target=y).losses, expected[0])
    with pipert.Pipeline(whole, **options) as pipe, pipert.Pipeline(tail, **options):
        assert same_bits(pipe.step(x, target=y).losses, expected[0])


# --- without a seed -------------------------------------------------------------------------------


def test_ranks_in_threads_repeat_themselves_after_manual_seed():
    x, y = batch(8)
    with pipert.Pipeline(
        pipert.split(model(), num_stages=4), num_microbatches=MICROBATCHES, loss_fn=mse
    ) as pipe:
        losses = []
        for _ in range(8):
            torch.manual_seed(7)
            losses.append(pipe.step(x, target=y).losses)
        assert all(same_bits(other, losses[0]) for other in losses)
        assert not torch.equal(pipe.step(x, target=y).losses, losses[0])


def test_a_pass_that_draws_nothing_leaves_the_generator_alone():
    x, y = batch(8)
    stages = pipert.split(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), num_stages=2)
    with pipert.Pipeline(stages, num_microbatches=2, loss_fn=mse) as pipe:
        before = torch.get_rng_state()
        pipe.step(x, target=y)
        assert same_bits(torch.get_rng_state(), before)


def test_one_rank_draws_as_the_plain_loop_does():
    one, other = twins(model)
    x, y = batch(8)
    torch.manual_seed(3)
    expected = [
        mse(one(a), b).detach()
        for a, b in zip(x.chunk(MICROBATCHES), y.chunk(MICROBATCHES), strict=True)
    ]
    with pipert.Pipeline(
        pipert.split(other, num_stages=1),
        schedule="gpipe",
        num_microbatches=MICROBATCHES,
        loss_fn=mse,
    ) as pipe:
        torch.manual_seed(3)
        assert same_bits(pipe.step(x, target=y).losses, torch.stack(expected))


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True, "1"])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="rng_seed must be an integer from 0 to"):
        pipert.Pipeline([nn.Linear(8, 8)], num_microbatches=1, rng_seed=seed)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "index", "text"),
    [
        ("a", 0, "step must be an integer from 0 to 9223372036854775807, got 'a'"),
        (-1, 0, "step must be"),
        (0, 2**40, "index must be an integer from 0 to 2147483647, got 1099511627776"),
        (0, True, "index must be"),
    ],
)
def test_keyed_random_names_a_bad_number(step, index, text):
    with (
        pipert.KeyedRandom(model(), rng_seed=1) as random,
        pytest.raises(ValueError, match=text),
        random.microbatch(step, index),
    ):
        pass


def test_keyed_random_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got function"):
        pipert.KeyedRandom(lambda x: x, rng_seed=1)
