"""materialize: each rank makes its own stages, with values from a checkpoint or with first ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors_writer import write, write_shards
from torch import Tensor, nn

import pipert
from pipert.checkpoints.checkpoint_files import CheckpointFiles
from pipert.checkpoints.safetensors_file import SafetensorsFile
from pipert.stages import StageSpec, Tied, Value


class Table(nn.Module):
    """With a buffer that a checkpoint doesn't have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("powers", torch.empty(4), persistent=False)
        self.register_buffer("calls", torch.tensor(0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.scale.fill_(2.0)
            self.calls.zero_()
            self.powers.copy_(2.0 ** torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.powers


def model(device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    with torch.device(device):
        return nn.Sequential(
            nn.Linear(4, 4),
            Table(),
            nn.BatchNorm1d(4),
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
        )


def trained() -> nn.Sequential:
    """Its values are not first ones."""
    plain = model()
    for parameter in plain.parameters():
        parameter.data = torch.randn_like(parameter)
    plain(torch.randn(5, 4))
    return plain


def built(stages: pipert.Stages) -> list[nn.Module]:
    return [stage() for stage in stages]


def state_of(modules: list[nn.Module]) -> dict[str, Tensor]:
    return {name: value for module in modules for name, value in module.state_dict().items()}


def assert_same_state(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


def one_file(folder, tensors):
    write(folder / "model.safetensors", tensors)
    return folder


def test_stages_without_values_are_refused_with_what_gives_them_some():
    with pytest.raises(ValueError, match=r"stage 0 has no values yet: .*materialize"):
        pipert.Pipeline(pipert.split(model("meta"), 2), num_microbatches=2)


@pytest.mark.parametrize(
    "save",
    [
        one_file,
        lambda folder, tensors: write(folder / "any.safetensors", tensors),
        lambda folder, tensors: write_shards(folder, tensors, 3),
        lambda folder, tensors: write_shards(folder, tensors, 2) / "model.safetensors.index.json",
    ],
    ids=["folder", "file", "shards", "index"],
)
def test_stages_on_the_meta_device_get_a_checkpoint_s_values(tmp_path, save):
    plain = trained()
    checkpoint = save(tmp_path, plain.state_dict())
    stages = pipert.materialize(pipert.split(model("meta"), 3), checkpoint)
    modules = built(stages)
    assert_same_state(state_of(modules), plain.state_dict())
    x = torch.randn(5, 4)
    expected, got = plain(x), x
    for module in modules:
        got = module(got)
    assert torch.equal(got, expected)


def test_stages_that_have_values_are_loaded_too_and_stay_as_they_are(tmp_path):
    plain, first = trained(), model()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    stages = pipert.materialize(pipert.split(first, 2), one_file(tmp_path, plain.state_dict()))
    assert_same_state(state_of(built(stages)), plain.state_dict())
    assert_same_state(first.state_dict(), before)


def test_a_pipeline_builds_its_stages_and_trains(tmp_path):
    plain = trained()
    stages = pipert.materialize(
        pipert.split(model("meta"), 2), one_file(tmp_path, plain.state_dict())
    )
    x = torch.randn(6, 4)
    loss = sum(plain(piece).square().mean() for piece in x.split(3)) / 2
    loss.backward()
    with pipert.Pipeline(
        stages, num_microbatches=2, loss_fn=lambda output: output.square().mean()
    ) as pipe:
        assert pipe.step(x).loss == loss
        grads = {name: p.grad for name, p in pipe.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert torch.equal(grads[name], parameter.grad)


def test_a_stage_reads_its_own_tensors_alone(tmp_path):
    """The other stage's 4 MB stay in the file."""
    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(1000, 1000), nn.Linear(2, 4))
    tensors = {name: torch.zeros(value.shape) for name, value in layers.state_dict().items()}
    path = write(tmp_path / "x.safetensors", tensors)
    header = int.from_bytes(path.read_bytes()[:8], "little") + 8
    counted: list[SafetensorsFile] = []
    opened = SafetensorsFile.__init__

    def counting(self, *args):
        counted.append(self)
        opened(self, *args)

    stages = pipert.materialize(pipert.split(layers, balance=[1, 1, 1], num_stages=3), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsFile, "__init__", counting)
        stages[0]()
    assert sum(file.bytes_read for file in counted) == header + 4 * (4 * 4 + 4)


def test_a_shard_that_a_stage_does_not_need_is_not_opened(tmp_path):
    plain = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    write_shards(tmp_path, plain.state_dict(), 2)
    stages = pipert.materialize(pipert.split(plain, 2), tmp_path)
    (tmp_path / "model-00002.safetensors").write_bytes(b"damaged")
    assert torch.equal(stages[0]().state_dict()["0.weight"], plain[0].weight)
    with pytest.raises(ValueError, match=r"model-00002\.safetensors is not a whole safetensors"):
        stages[1]()


def test_floating_point_takes_the_dtype_that_is_asked_for(tmp_path):
    plain = trained()
    stages = pipert.materialize(
        pipert.split(model("meta"), 2), one_file(tmp_path, plain.state_dict()), dtype=torch.bfloat16
    )
    modules = built(stages)
    expected = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in plain.state_dict().items()
    }
    assert_same_state(state_of(modules), expected)
    # What a checkpoint doesn't have is computed as ever: tables need their precision.
    assert modules[0].get_buffer("1.powers").dtype == torch.float32


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 1, 1], [1, 1, 1, 1]])
def test_first_values_are_equal_under_every_partition(sizes):
    def values(sizes: list[int], seed: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            layers = nn.Sequential(
                nn.Linear(4, 4), Table(), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)
            )
        stages = pipert.split(layers, num_stages=len(sizes), balance=sizes)
        return state_of(built(pipert.materialize(stages, seed=seed)))

    state = torch.get_rng_state()
    got = values(sizes, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(got, values([2, 2], 1))
    assert not torch.equal(got["0.weight"], values(sizes, 2)["0.weight"])
    bound = 1 / 4**0.5
    assert got["0.weight"].abs().max() <= bound
    assert got["0.weight"].std() > bound / 4
    assert torch.equal(got["1.scale"], torch.full((4,), 2.0))
    assert torch.equal(got["2.running_var"], torch.ones(4))


def test_init_weights_has_the_last_word():
    def ones(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.ones_(module.weight)

    stages = pipert.materialize(pipert.split(model("meta"), 2), init_weights=ones)
    state = state_of(built(stages))
    assert torch.equal(state["0.weight"], torch.ones(4, 4))
    assert not torch.equal(state["0.bias"], torch.ones(4))


def test_values_that_are_there_are_kept_without_a_checkpoint():
    plain = trained()
    modules = built(pipert.materialize(pipert.split(plain, 2)))
    assert_same_state(state_of(modules), plain.state_dict())
    assert torch.equal(modules[0].get_buffer("1.powers"), plain[1].powers)
    assert modules[0].get_parameter("0.weight") is not plain[0].weight


class Tall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_a_value_that_nothing_gives_is_an_error():
    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(3, 3), Tall())
    stages = pipert.materialize(pipert.split(layers, 2))
    stages[0]()
    with pytest.raises(ValueError, match=r"nothing says what 1\.scale is at first"):
        stages[1]()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("is_set", ["not at all", "in part", "all"])
def test_a_buffer_of_any_dtype_must_get_its_values(dtype, is_set):
    class Mask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(3, 3, dtype=dtype), persistent=False)

        def reset_parameters(self) -> None:
            if is_set != "not at all":
                self.mask[: 2 if is_set == "in part" else 3] = 1

    with torch.device("meta"):
        layers = nn.Sequential(nn.Linear(3, 3), Mask())
    stages = pipert.materialize(pipert.Stages([layers]))
    if is_set == "all":
        assert torch.equal(stages[0]().get_buffer("1.mask"), torch.ones(3, 3, dtype=dtype))
    else:
        with pytest.raises(ValueError, match=r"nothing says what 1\.mask is at first"):
            stages[0]()


class Embed(nn.Embedding):
    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (super().forward(ids),)


def tied_stages(device: str, num_middle: int = 1) -> pipert.Stages:
    """An embedding whose weight the last stage uses too, under another name."""
    with torch.device(device):
        first = nn.ModuleDict({"embed": Embed(5, 3)})
        last = nn.ModuleDict({"head": nn.Linear(3, 5, bias=False), "norm": nn.LayerNorm(3)})
    last["head"].weight = first["embed"].weight
    return pipert.Stages(
        [first, last],
        specs=[StageSpec((), ("hidden_0",), ("ids",)), StageSpec(("hidden_0",))],
        values=[Value("hidden_0", 0, (1,))],
        tied=[Tied(((0, "embed.weight"), (1, "head.weight")))],
    )


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_a_tied_weight_needs_one_of_its_names_and_is_one_object(tmp_path, name):
    weight = torch.randn(5, 3)
    tensors = {name: weight, "norm.weight": torch.randn(3), "norm.bias": torch.randn(3)}
    stages = pipert.materialize(tied_stages("meta"), one_file(tmp_path, tensors))
    first, last = built(stages)
    assert torch.equal(first["embed"].weight, weight)
    assert last["head"].weight is first["embed"].weight
    assert stages.tied == tied_stages("meta").tied


def test_a_stage_that_could_not_be_loaded_leaves_no_weight_to_others(tmp_path):
    weight = torch.randn(5, 3)
    tensors = {"embed.weight": weight, "norm.weight": torch.ones(3), "norm.bias": torch.ones(3)}
    first, last = pipert.materialize(tied_stages("meta"), one_file(tmp_path, tensors))
    failed: list[BaseException] = []

    def fail(*args: object) -> None:
        raise OSError("the disk is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsFile, "read_into", fail)
        with pytest.raises(OSError, match="gone") as error:
            first()
        failed.append(error.value)  # whose frames hold what was made
    assert torch.equal(last()["head"].weight, weight)
    assert torch.equal(first()["embed"].weight, weight)


def test_the_last_stage_alone_finds_its_tied_weight(tmp_path):
    weight = torch.randn(5, 3)
    tensors = {"embed.weight": weight, "norm.weight": torch.ones(3), "norm.bias": torch.ones(3)}
    stages = pipert.materialize(tied_stages("meta"), one_file(tmp_path, tensors))
    assert torch.equal(stages[1]()["head"].weight, weight)


def test_a_tied_weight_s_first_values_are_its_owner_s():
    def weight(sizes: list[int]) -> Tensor:
        with torch.device("meta"):
            layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        layers[2].weight = layers[0].weight
        split = pipert.split(layers, num_stages=len(sizes), balance=sizes)
        ties = [Tied(((0, "0.weight"), (1, "2.weight")))] if len(sizes) > 1 else []
        stages = pipert.Stages(list(split), tied=ties)
        modules = built(pipert.materialize(stages))
        assert modules[-1].get_parameter("2.weight") is modules[0].get_parameter("0.weight")
        return modules[0].get_parameter("0.weight")

    assert torch.equal(weight([3]), weight([1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), r"the checkpoint lacks 0\.weight"),
        (
            lambda state: state.update({"more": torch.ones(1)}),
            "the checkpoint has names that the model does not have: more",
        ),
    ],
)
def test_names_that_do_not_fit_are_refused_at_once(tmp_path, change: Callable, message: str):
    state = trained().state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        pipert.materialize(pipert.split(model("meta"), 2), one_file(tmp_path, state))


def test_a_wrong_shape_is_refused_before_anything_is_read(tmp_path):
    state = trained().state_dict()
    state["3.2.bias"] = torch.ones(5)
    stages = pipert.materialize(pipert.split(model("meta"), 1), one_file(tmp_path, state))
    reads: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafetensorsFile, "read_into", lambda self, name, target: reads.append(name))
        with pytest.raises(ValueError, match=r"'3\.2\.bias' must have shape \(4,\), got \(5,\)"):
            stages[0]()
    assert reads == []


def test_rename_maps_names_and_leaves_some_out(tmp_path):
    plain = trained()
    state = {f"old.{name}": value for name, value in plain.state_dict().items()}
    state["mask"] = torch.ones(1)
    stages = pipert.materialize(
        pipert.split(model("meta"), 2),
        one_file(tmp_path, state),
        rename=lambda name: name[4:] if name.startswith("old.") else None,
    )
    assert_same_state(state_of(built(stages)), plain.state_dict())


def test_two_names_that_become_one_are_refused(tmp_path):
    one_file(tmp_path, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="got 'x' for 'a' and 'b'"):
        CheckpointFiles(tmp_path, lambda name: "x")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "must be a JSON object with a weight_map"),
        ('{"weight_map": {"x": "../y"}}', "the name of a file in the same folder for 'x'"),
        ('{"weight_map": {"x": 3}}', "the name of a file in the same folder for 'x', got 3"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        CheckpointFiles(tmp_path)


def test_a_tensor_that_is_not_where_the_index_says_is_an_error(tmp_path):
    write_shards(tmp_path, {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)}, 2)
    write(tmp_path / "model-00001.safetensors", {"other": torch.ones(3)})
    stages = pipert.materialize(pipert.split(nn.Sequential(nn.Linear(3, 3)), 1), tmp_path)
    with pytest.raises(ValueError, match=r"00001\.safetensors has no tensor '0\.weight': expected"):
        stages[0]()


def test_a_folder_without_a_checkpoint_says_what_is_there(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected model\.safetensors .* got pytorch_model\.bin"):
        CheckpointFiles(tmp_path)
    with pytest.raises(ValueError, match="nothing there"):
        CheckpointFiles(tmp_path / "no")


def test_builders_are_called_on_the_meta_device(tmp_path):
    """So a stage never holds first values that a checkpoint is to replace."""
    plain = nn.Sequential(nn.Linear(3, 3))
    devices: list[str] = []

    def build() -> nn.Module:
        built = nn.Sequential(nn.Linear(3, 3))
        devices.append(built[0].weight.device.type)
        return built

    stages = pipert.Stages([build], names=[["0.weight", "0.bias"]])
    built_stage = pipert.materialize(stages, one_file(tmp_path, plain.state_dict()))[0]()
    assert_same_state(built_stage.state_dict(), plain.state_dict())
    assert devices == ["meta"]
