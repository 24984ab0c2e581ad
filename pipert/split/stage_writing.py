"""Stage writing: the module of one stage of a cut."""

from __future__ import annotations

from torch import fx

from pipert.split.cut import Cut
from pipert.split.graph_nodes import leaves_inside
from pipert.split.stage_code import StageCode
from pipert.split.stage_inputs import StageInputs
from pipert.split.stage_module import StageModule
from pipert.split.tree_code import write_tree


def write_stage(cut: Cut, stage: int) -> StageModule:
    """The module of one stage: `stage(*inputs, **arguments)` returns the tuple of its outputs."""
    part = cut.parts[stage]
    trace = cut.trace
    holder = StageModule(trace.model)
    computed = [*part.remade, *part.nodes]
    calls = [call for node in computed for call in leaves_inside(trace, node) if call.is_module]
    holder.module.meta["layers"] = [call.path for call in calls if not call.is_pure]
    for call in sorted(calls, key=lambda call: call.path.count(".")):
        holder.place_module(call.path)
    code = StageCode(trace, holder, fx.Graph(), part.sizes)
    inputs = StageInputs(code, trace, part)
    inputs.take_values({node: cut.values[node].name for node in part.inputs})
    inputs.take_arguments(trace.fixed if stage == 0 else [], _first_read(cut, stage))
    inputs.take_stand_ins()
    for node in computed:
        code.write(node)
    if stage == len(cut.parts) - 1:
        results = [code.own(result) for result in trace.results]
        code.graph.output(write_tree(code.graph, trace.result_spec, results, code.constant))
    else:
        code.graph.output(tuple(code.own(node) for node in part.outputs))
    holder.module.graph = code.graph
    return holder


def argument_names(cut: Cut, stage: int) -> tuple[str, ...]:
    """The arguments of the batch that a stage takes."""
    trace = cut.trace
    taken = [trace.arguments[node] for node in cut.parts[stage].arguments]
    if stage == 0:
        taken += trace.fixed
    return tuple(dict.fromkeys(argument.name for argument in taken))


def _first_read(cut: Cut, stage: int) -> set[fx.Node]:
    """The arguments that no stage before this one takes."""
    before = {node for part in cut.parts[:stage] for node in part.arguments}
    return set(cut.parts[stage].arguments) - before
