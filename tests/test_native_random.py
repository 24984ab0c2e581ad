"""Native stages draw what their modules draw, also when they run again, and beside all else."""

import copy

import pytest
import torch
from plain_loop import batch, same_bits
from torch import nn

import pipert
from pipert import Schedule, native

pytestmark = pytest.mark.timeout(120)
mse = nn.functional.mse_loss
MICROBATCHES = 4


class Noisy(nn.Module):
    """Draws in several ways, some of them without gradients."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        with torch.no_grad():
            noise = torch.rand_like(x)
        return nn.functional.dropout(self.linear(x), 0.3) + noise + torch.randn(x.shape[0], 1)


def layers():
    """Ten layers, most of them random, one that is used three times."""
    torch.manual_seed(0)
    shared = nn.Dropout(0.3)
    return [
        nn.Linear(8, 8),
        nn.Sequential(shared, nn.Linear(8, 8), shared, nn.Tanh()),
        Noisy(),
        nn.Sequential(nn.Dropout(0.4), nn.Identity(), nn.Linear(8, 8)),
        shared,
    ]


def cut(sizes):
    made = iter(layers())
    return [nn.Sequential(*(next(made) for _ in range(size))) for size in sizes]


def leaves(value):
    """The tensors of nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for element in value for leaf in leaves(element)] if value else []


def pipeline(stages, stage_kind="native", **options):
    options = {"loss_fn": mse, "num_microbatches": MICROBATCHES, **options}
    return pipert.Pipeline(stages, stage_kind=stage_kind, **options)


def see(stages, stage_kind, steps=3, kwargs=None, seed=3, **options):
    """All that can be seen of a few steps and evaluations, and how the last two passes ran."""
    x, y = batch(8)
    stages = copy.deepcopy(stages)
    seen = []
    torch.manual_seed(seed)
    with pipeline(stages, stage_kind, **options) as pipe:
        optimizer = torch.optim.SGD(pipe.parameters(), lr=0.1)
        for _ in range(steps):
            given = {name: value.clone() for name, value in (kwargs or {}).items()}
            result = pipe.step(x.clone(), target=y.clone(), return_outputs=True, **given)
            kinds = [pipe.stage_kinds, pipe.loss_kind]
            seen += [result.losses, *leaves(result.outputs), *leaves(list(given.values()))]
            seen += [p.main_grad.clone() for p in pipe.parameters() if hasattr(p, "main_grad")]
            seen += [p.grad.clone() for p in pipe.parameters() if p.grad is not None]
            given = {name: value.clone() for name, value in (kwargs or {}).items()}
            seen.append(pipe.evaluate(x.clone(), target=y.clone(), **given).losses)
            kinds += [pipe.stage_kinds, pipe.loss_kind]
            optimizer.step()
            optimizer.zero_grad()
        seen += [value.clone() for value in pipe.state_dict().values()]
        seen.append(torch.get_rng_state())
    return seen, kinds


def assert_same(found, expected):
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert same_bits(a, b), index


def assert_native(kinds):
    for kind in kinds:
        assert set(kind.values() if isinstance(kind, dict) else [kind]) == {"native"}


def assert_native_equals_module(stages, recompute="none", **options):
    """Bit for bit; natively with `recompute`, in the module without."""
    expected, _ = see(stages, "module", **options)
    found, kinds = see(stages, "native", recompute=recompute, **options)
    assert_native(kinds)
    assert_same(found, expected)
    return found


# --- random numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[5], [1, 4], [2, 3], [2, 1, 2], [1, 1, 1, 1, 1]])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_layers_draw_natively_what_they_draw_in_the_module(sizes, recompute):
    found = assert_native_equals_module(cut(sizes), recompute, rng_seed=5)
    one = see(cut([5]), "module", rng_seed=5)[0]
    assert_same(found[:2], one[:2])  # whatever the cut


@pytest.mark.parametrize("rng_seed", [None, 5])
@pytest.mark.parametrize(("schedule", "ranks"), [("interleaved_1f1b", 1), ("looped_bfs", 2)])
def test_ranks_draw_natively_what_they_draw_in_the_module(schedule, ranks, rng_seed):
    assert_native_equals_module(
        cut([1, 1, 1, 2]), schedule=schedule, num_ranks=ranks, rng_seed=rng_seed
    )


class Block(nn.Module):
    """No Sequential: one layer, whatever it is made of."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.dropout(self.linear(self.dropout(x)))


def test_a_stage_of_one_layer_draws_natively_what_its_module_draws():
    torch.manual_seed(0)
    assert_native_equals_module([Block(), Noisy()], rng_seed=5)


def test_a_layer_that_calls_another_layer_draws_the_same():
    torch.manual_seed(0)
    block = Block()
    stage = nn.Sequential(block.dropout, block, nn.Linear(8, 8), block.dropout, block)
    assert_native_equals_module([stage, Noisy()], rng_seed=5)


def test_layers_of_a_sequential_that_is_used_twice_draw_the_same():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8), Noisy())
    assert_native_equals_module([nn.Sequential(inner, nn.Tanh(), inner), Noisy()], rng_seed=5)


def test_a_random_loss_function_draws_from_its_own_stream():
    def loss_fn(output, target):
        return mse(nn.functional.dropout(output, 0.5), target)

    assert_native_equals_module(cut([2, 3]), rng_seed=5, loss_fn=loss_fn)


def test_what_nobody_reads_is_drawn_all_the_same():
    class Wasteful(nn.Linear):
        def forward(self, x):
            torch.rand(3)
            return super().forward(x)

    stage = nn.Sequential(nn.Linear(8, 8), Wasteful(8, 8), nn.Dropout(0.5))
    for seed in (None, 5):
        assert_native_equals_module([stage, nn.Linear(8, 8)], rng_seed=seed)


def test_graphs_follow_the_hooks_of_layers():
    """One pipeline after the other over the same modules, with a seed and without."""
    stages = cut([2, 3])
    reference = copy.deepcopy(stages)
    x, y = batch(8)
    for rng_seed in (5, None, 6):
        found = []
        for kind, modules in (("module", reference), ("native", stages)):
            torch.manual_seed(2)
            with pipeline(modules, kind, rng_seed=rng_seed) as pipe:
                found.append([pipe.step(x, target=y).losses for _ in range(3)])
                if kind == "native":
                    assert_native([pipe.stage_kinds, pipe.loss_kind])
        assert_same(*found)


def test_hooks_of_layers_that_are_taken_off_are_missed_natively_too():
    x, y = batch(8)
    found = []
    for kind in ("module", "native"):
        stages = cut([2, 3])
        with pipeline(stages, kind, rng_seed=5) as pipe:
            losses = [pipe.step(x, target=y).losses for _ in range(3)]
            for module in nn.ModuleList(stages).modules():
                module._forward_pre_hooks.clear()
            losses += [pipe.step(x, target=y).losses for _ in range(2)]
            assert set(pipe.stage_kinds.values()) == {kind}
        found.append(losses)
    assert_same(*found)


def test_layers_of_two_pipelines_over_the_same_modules_keep_their_streams():
    stages = cut([2, 3])
    x, y = batch(8)
    expected = [see(stages, "module", steps=3, rng_seed=seed)[0] for seed in (5, 6)]
    with pipeline(stages, rng_seed=5) as one:
        one.step(x, target=y)
        one.step(x, target=y)
        assert_native([one.stage_kinds])
        for p in one.parameters():
            p.grad = None
        with pipeline(stages, rng_seed=6) as other:
            losses = [other.step(x, target=y).losses for _ in range(3)]
            assert_native([other.stage_kinds])
            assert same_bits(losses[0], expected[1][0])
            assert not same_bits(losses[0], expected[0][0])
            one.step_index = 0
            assert same_bits(one.step(x, target=y).losses, expected[0][0])  # its hooks have company
        one.step_index = 0
        assert same_bits(one.step(x, target=y).losses, expected[0][0])
        assert_native([one.stage_kinds])


def test_a_hook_of_the_users_beside_those_of_layers_still_needs_the_module():
    stages = cut([2, 3])
    calls = []
    stages[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    with pipeline(stages, rng_seed=5) as pipe:
        for _ in range(2):
            pipe.step(*batch(8)[:1], target=batch(8)[1])
        assert pipe.stage_kinds == {0: "module: Linear has hooks", 1: "native"}
    assert len(calls) == 2 * MICROBATCHES


def test_a_layer_that_asks_for_its_microbatch_needs_the_module():
    class Asking(nn.Linear):
        def forward(self, x):
            return super().forward(x) * pipert.current_microbatch().index

    class Taking(nn.Linear):
        def forward(self, x, microbatch_index=None):
            return super().forward(x) * microbatch_index

    class Careful(nn.Linear):
        def forward(self, x):
            now = pipert.current_microbatch()
            return super().forward(x) * (now.index if now is not None else 1)

    asks = "module: it asks which microbatch it is"
    takes = "module: Taking's forward takes microbatch_index"
    for layer, reason in ((Asking, asks), (Taking, takes), (Careful, asks)):
        torch.manual_seed(0)
        stages = [nn.Sequential(nn.Linear(8, 8), layer(8, 8)), nn.Linear(8, 8)]
        expected, _ = see(stages, "module")
        found, kinds = see(stages, "native")
        assert_same(found, expected)
        assert kinds[0] == {0: reason, 1: "native"}


def test_a_graph_that_has_lost_its_layers_is_refused(monkeypatch):
    def forgetful(*args, **kwargs):
        program = exported(*args, **kwargs)
        for node in list(program.graph.nodes):
            if node.target is torch.ops.pipert.enter_layer.default:
                program.graph.erase_node(node)
        return program

    exported = torch.export.export
    monkeypatch.setattr(torch.export, "export", forgetful)
    module, x = cut([5])[0], torch.randn(2, 8)
    native.export(module, (x,), {})
    with (
        pipert.KeyedRandom(module, rng_seed=1),
        pytest.raises(native.NativeError, match="its graph doesn't say where its layers begin"),
    ):
        native.export(module, (x,), {})


# --- recomputation --------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Takes a keyword, and may change it in place."""

    def __init__(self, in_place=False):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.in_place = in_place

    def forward(self, x, scale=None):
        x = nn.functional.dropout(self.linear(x), 0.2)
        if scale is None:
            return x
        return x * (scale.mul_(2.0).clone() if self.in_place else scale)


def random_stages():
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 8)),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Dropout(0.3)),
        nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 8)),
    ]


@pytest.mark.parametrize("recompute", ["all", "except_last", [0], [1], [2]])
@pytest.mark.parametrize("rng_seed", [None, 5])
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_recomputed_native_stages_have_the_bits_of_modules(recompute, rng_seed, schedule):
    assert_native_equals_module(
        random_stages(), recompute, rng_seed=rng_seed, schedule=schedule, num_ranks=3
    )


@pytest.mark.parametrize("recompute", ["all", "except_last"])
@pytest.mark.parametrize("rng_seed", [None, 5])
@pytest.mark.parametrize("schedule", ["gpipe", "interleaved_1f1b"])
def test_recomputed_native_stages_of_one_rank_have_the_bits_of_modules(
    recompute, rng_seed, schedule
):
    stages = random_stages()
    if schedule == "gpipe":
        stages = [nn.Sequential(*stages)]
    assert_native_equals_module(
        stages, recompute, rng_seed=rng_seed, schedule=schedule, num_ranks=1
    )


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_keywords_of_recomputed_native_stages_may_be_changed_in_place(in_place, num_ranks):
    torch.manual_seed(0)
    stages = [Scaled(in_place), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2))]
    schedule = "gpipe" if num_ranks == 2 else "interleaved_1f1b"
    scale = torch.linspace(1.0, 2.0, 8)[:, None]
    assert_native_equals_module(
        stages, "all", num_ranks=num_ranks, schedule=schedule, kwargs={"scale": scale}
    )


class Overwriting(nn.Linear):
    """Changes the batch, whose microbatches are views of it."""

    def forward(self, x):
        return super().forward(x.add_(1.0).clone())


@pytest.mark.parametrize("recompute", ["all", "except_last"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_batch_that_a_recomputed_native_stage_changes_is_changed_once(recompute, num_ranks):
    torch.manual_seed(0)
    schedule = "gpipe" if num_ranks == 2 else "interleaved_1f1b"
    assert_native_equals_module(
        [Overwriting(8, 8), nn.Linear(8, 8)], recompute, schedule=schedule, num_ranks=num_ranks
    )


def test_a_target_that_a_native_loss_changes_is_changed_once():
    def loss_fn(output, target):
        return mse(output, target.mul_(2.0))

    assert_native_equals_module(random_stages(), "all", loss_fn=loss_fn)


def test_a_recomputed_stage_with_buffers_runs_its_module_and_says_why():
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), nn.Linear(8, 8)]
    expected, _ = see(stages, "module")
    found, kinds = see(stages, "native", recompute="all")
    reason = "module: it is recomputed and has buffers, which are put back by Python"
    assert kinds[:2] == [{0: reason, 1: "native"}, "native"]
    assert_native(kinds[2:])  # nothing is recomputed in an evaluation
    assert_same(found, expected)


def test_a_native_stage_may_have_a_loss_that_runs_as_a_module_when_it_is_recomputed():
    def loss_fn(output, target):
        return mse(output, target) if output.sum() > -1e9 else None

    expected, _ = see(random_stages(), "module", loss_fn=loss_fn)
    found, kinds = see(random_stages(), "native", loss_fn=loss_fn, recompute="all")
    assert_native(kinds[:1])
    assert kinds[1].startswith("module: ")
    assert_same(found, expected)


# --- beside all else ------------------------------------------------------------------------------


@pytest.mark.parametrize("rng_seed", [None, 5])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_native_stages_add_to_main_grads(recompute, rng_seed):
    assert_native_equals_module(random_stages(), recompute, main_grads=True, rng_seed=rng_seed)


@pytest.mark.parametrize("recompute", ["none", "all", [1]])
@pytest.mark.parametrize("name", ["gpipe", "zb_h1"])
@pytest.mark.parametrize("ahead", [0, 1])
def test_activations_of_native_stages_go_to_the_host(name, recompute, ahead):
    schedule = Schedule.build(name, num_ranks=3, num_microbatches=MICROBATCHES)
    expected, _ = see(random_stages(), "module", schedule=schedule, rng_seed=5)
    found, kinds = see(
        random_stages(),
        "native",
        schedule=schedule.with_offload(ahead=ahead),
        rng_seed=5,
        recompute=recompute,
    )
    assert_native(kinds)
    assert_same(found, expected)


@pytest.mark.parametrize("rng_seed", [None, 5])
@pytest.mark.parametrize("recompute", ["none", "all"])
@pytest.mark.parametrize("schedule", ["chimera", "dualpipe"])
def test_both_copies_of_a_native_stage_have_the_modules_bits(schedule, recompute, rng_seed):
    assert_native_equals_module(
        cut([2, 3]), recompute, schedule=schedule, rng_seed=rng_seed, num_microbatches=8
    )


def forward_first(forward, backward):
    forward()
    backward()


def backward_first(forward, backward):
    backward()
    forward()


@pytest.mark.parametrize("overlap_fn", [forward_first, backward_first])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_native_stages_run_in_the_users_pairs(overlap_fn, recompute):
    assert_native_equals_module(
        cut([1, 1, 1, 2]),
        recompute,
        schedule="dualpipe_v",
        num_ranks=2,
        num_microbatches=6,
        overlap_fn=overlap_fn,
        rng_seed=5,
    )
