"""What can't be traced is refused with the user's line and a way out."""

import dataclasses
import inspect

import pytest
import torch
from torch import nn

import pipert


class Net(nn.Module):
    def __init__(self, glue=lambda self, x: x):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(12)])
        self.glue = glue

    def forward(self, x, scale=1.0):
        x = self.glue(self, self.embed(x))
        for layer in self.layers:
            x = layer(x)
        return x * scale


def split(model, *args, at=("layers.2",), rows=3, **options):
    args = args or (torch.randn(rows, 4),)
    return pipert.split(model, at=list(at), example_args=args, by="trace", **options)


def line_of(function, text):
    """`file:line: text` of the line of a function that has the text."""
    lines, first = inspect.getsourcelines(function)
    number, line = next((i, line.strip()) for i, line in enumerate(lines) if text in line)
    return f"{inspect.getsourcefile(function)}:{first + number}: {line}"


def message_of(error, *args, **options):
    with pytest.raises(error) as caught:
        split(*args, **options)
    return str(caught.value)


# --- cuts ---------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_near_ones():
    text = message_of(ValueError, Net(), at=["layers.13"])
    assert "at must name modules of Net: got 'layers.13', which is none" in text
    assert "near names: layers.3, layers.1, layers.11" in text
    assert "near names: embed" in message_of(ValueError, Net(), at=["embedd"])
    assert "it has embed, layers" in message_of(ValueError, Net(), at=["zzz"])


def test_cuts_out_of_order_are_refused_with_the_order():
    text = message_of(ValueError, Net(), at=["layers.7", "layers.2"])
    assert "in the order in which they are called: expected 'layers.2', 'layers.7'" in text


def test_cuts_that_are_no_paths_are_refused():
    assert "got a list of str, Linear" in message_of(
        TypeError, Net(), at=["layers.2", nn.Linear(4, 4)]
    )


def test_a_cut_at_what_is_not_called_is_refused():
    assert "'layers' (at) is a ModuleList, which is never called: expected one of its entries" in (
        message_of(ValueError, Net(), at=["layers"])
    )
    model = Net()
    model.unused = nn.Linear(4, 4)
    assert "'unused' (at) must be called by Net's forward" in message_of(
        ValueError, model, at=["unused"]
    )


def test_a_cut_that_leaves_a_stage_empty_is_refused():
    assert "stage 0 would have nothing to compute: a cut is before all that forward does" in (
        message_of(ValueError, Net(), at=["embed"])
    )
    assert "stage 1 would have nothing to compute" in message_of(
        ValueError, Net(), at=["layers.1", "layers.1"]
    )


def test_a_cut_inside_of_no_grad_is_refused():
    def glue(self, x):
        with torch.no_grad():
            return self.frozen(x)

    model = Net(glue)
    model.frozen = nn.Linear(4, 4)
    assert "outside of torch.no_grad and torch.autocast" in message_of(
        ValueError, model, at=["frozen"]
    )


# --- what a trace can't follow ------------------------------------------------------------------


def branches(self, x):
    if x.sum() > 0:
        return x + 1
    return x


def counts(self, x):
    return x * len(x[x > 0].tolist())


@pytest.mark.parametrize(("glue", "text"), [(branches, "if x.sum()"), (counts, "tolist")])
def test_data_dependent_control_flow_is_named_with_its_line(glue, text):
    message = message_of(ValueError, Net(glue))
    assert "Net can't be traced: what it does there depends on the values of tensors" in message
    assert line_of(glue, text) in message
    assert "Cut it by structure" in message


def test_an_error_of_the_models_own_is_named_with_its_line():
    def fails(self, x):
        return x.no_such_thing

    message = message_of(ValueError, Net(fails))
    assert "no_such_thing" in message
    assert line_of(fails, "return x") in message


def test_a_fixed_batch_dimension_is_named_with_its_line():
    def fixes(self, x):
        return x + torch.arange(len(x))[:, None]

    message = message_of(ValueError, Net(fixes))
    assert "Net fixes the batch dimension at 3" in message
    assert line_of(fixes, "arange") in message
    stages = split(Net(fixes), fixed_batch=True)
    with pytest.raises(
        ValueError, match=r"expected x of shape \(3, 4\), which the model was split"
    ):
        stages[0](x=torch.randn(4, 4))


def test_an_example_of_one_row_is_refused():
    assert "must have at least 2 rows" in message_of(ValueError, Net(), rows=1)


def test_what_fails_writes_nothing_to_stderr(capfd):
    message_of(ValueError, Net(branches))
    assert capfd.readouterr().err == ""


# --- arguments ----------------------------------------------------------------------------------


def test_examples_that_do_not_fit_forward_are_refused():
    with pytest.raises(
        TypeError, match=r"must fit Net.forward\(x, scale=1.0\): missing a required"
    ):
        pipert.split(Net(), 2, example_kwargs={"scale": 1.0}, by="trace")
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'mask'"):
        split(Net(), example_kwargs={"mask": None})
    with pytest.raises(ValueError, match="expected example_args or example_kwargs, to trace Net"):
        pipert.split(Net(), 2, by="trace")


def test_examples_that_the_model_itself_fails_on_are_refused(capfd):
    def fails(self, x):
        return x @ torch.ones(3, 3)

    message = message_of(ValueError, Net(fails))
    assert "Net fails on the example, traced or not: RuntimeError: mat1 and mat2 shapes" in message
    assert line_of(fails, "return x") in message
    assert "by structure" not in message
    assert capfd.readouterr().err == ""


def test_constants_of_the_trace_may_not_change():
    stages = split(Net(), torch.randn(3, 4), 2.0)
    x = torch.randn(3, 4)
    stages[0](x=x, scale=2.0)
    with pytest.raises(
        ValueError, match=r"expected scale=2.0, which the model was split with, got 3"
    ):
        stages[0](x=x, scale=3.0)


@dataclasses.dataclass
class Unknown:
    tensor: torch.Tensor


def test_tensors_in_types_that_pytree_does_not_know_are_refused():
    class Takes(nn.Linear):
        def forward(self, unknown):
            return super().forward(unknown.tensor)

    model = Net(lambda self, x: self.takes(Unknown(x)))
    model.takes = Takes(4, 4)
    message = message_of(ValueError, model)
    assert "takes is called with a Unknown with tensors in it" in message
    with pytest.raises(TypeError, match="x must be of a type that torch"):
        split(Net(), Unknown(torch.randn(3, 4)))


# --- the model ----------------------------------------------------------------------------------


def test_a_model_that_keeps_results_in_attributes_is_found_out():
    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) + Remembers.last

    class Remembers(nn.Linear):
        last = 0.0

        def forward(self, x):
            Remembers.last = float(Remembers.last) + 1
            return super().forward(x) + Remembers.last

    model = Net()
    model.layers[0], model.layers[5] = Remembers(4, 4), Reads(4, 4)
    assert "the stages of Net don't compute what it does: output" in message_of(ValueError, model)


def test_hooks_of_what_is_cut_inside_are_refused():
    model = nn.ModuleDict({"net": Net()})
    model.forward = lambda x: model["net"](x)
    model["net"].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="net has hooks, and is cut inside: they would be lost"):
        split(model, at=["net.layers.1"])


def hooks(self, x):
    x.register_hook(lambda gradient: 2 * gradient)
    return x


def test_hooks_of_tensors_between_layers_are_refused_with_their_line():
    text = message_of(ValueError, Net(hooks))
    assert "a trace would lose what Tensor.register_hook registers" in text
    assert line_of(hooks, "register_hook") in text


def test_a_write_that_another_stage_would_not_see_is_refused():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.a(x)
            view = h[:, :2]
            y = self.b(h.relu())
            h.add_(1)
            return self.c(y) + torch.cat([view, view], 1)

    message = message_of(ValueError, Model(), at=["b", "c"])
    assert "stage 1 writes to what stage 2 reads, and would not see it" in message
    assert line_of(Model.forward, "h.add_(1)") in message


@pytest.mark.parametrize("kept", ["h", "view", "x"])
def test_a_leaf_that_works_in_place_on_what_a_later_stage_reads_is_told(kept):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.a(x) * 2
            read = {"h": h, "view": h[:, :2], "x": x}[kept]
            y = self.relu(x if kept == "x" else h)
            return self.c(self.b(y))[:, : read.shape[1]] + read

    message = message_of(ValueError, Model(), at=["relu", "c"])
    assert message.startswith("stage 1 (relu, b) works in place on the memory of ")
    assert "which stage 2 reads: expected a stage that changes a copy of it" in message


def test_a_model_without_an_example_is_told_what_one_is_for():
    with pytest.raises(ValueError, match=r"Net is not .*: expected example_args or .* to trace"):
        pipert.split(Net(), 2)


def test_ways_that_do_not_exist_are_refused():
    with pytest.raises(
        ValueError, match="by must be one of auto, structure, trace, plan, got 'fx'"
    ):
        pipert.split(Net(), 2, by="fx")
    with pytest.raises(ValueError, match="a list of layers can only be cut by structure"):
        pipert.split([nn.Linear(1, 1)], 1, by="trace")
