"""StageGraph: a value of pairs of stages beyond the chain."""

import pytest

from pipert import _C


def test_pairs_are_sorted_and_there_once():
    graph = _C.StageGraph(
        activations=[(1, 3), (0, 3), (0, 2), (0, 3)], gradients=[(3, 1), (2, 0), (3, 1)]
    )
    assert graph.activations == [(0, 2), (0, 3), (1, 3)]
    assert graph.gradients == [(2, 0), (3, 1)]
    assert not graph.is_chain
    assert repr(graph) == "<StageGraph: activations 0->2 0->3 1->3, gradients 2->0 3->1>"


def test_graphs_of_the_same_pairs_are_equal():
    one = _C.StageGraph(activations=[(0, 2), (1, 3)])
    assert one == _C.StageGraph(activations=[(1, 3), (0, 2), (0, 2)])
    assert one != _C.StageGraph(activations=[(0, 2)])
    assert one != _C.StageGraph(activations=[(0, 2), (1, 3)], gradients=[(2, 0)])


def test_without_pairs_it_is_the_chain():
    assert _C.StageGraph().is_chain
    assert _C.StageGraph() == _C.StageGraph(activations=[], gradients=[])
    assert repr(_C.StageGraph()) == "<StageGraph: the chain>"
    assert not _C.StageGraph(gradients=[(2, 0)]).is_chain


@pytest.mark.parametrize("pair", [(0, 1), (1, 1), (2, 0), (-1, 3)])
def test_an_activation_between_neighbours_or_back_is_refused(pair):
    text = rf"activations from a stage to one after the next, got {pair[0]}->{pair[1]}"
    with pytest.raises(ValueError, match=text):
        _C.StageGraph(activations=[(0, 5), pair])


@pytest.mark.parametrize("pair", [(1, 0), (1, 1), (0, 2), (3, -1)])
def test_a_gradient_between_neighbours_or_ahead_is_refused(pair):
    text = rf"gradients from a stage to one before the one before it, got {pair[0]}->{pair[1]}"
    with pytest.raises(ValueError, match=text):
        _C.StageGraph(gradients=[(5, 0), pair])


@pytest.mark.parametrize("pairs", [[(0, True)], [(0, 2, 4)], [0, 2], [("0", 2)]])
def test_what_is_no_pair_of_stages_is_refused(pairs):
    with pytest.raises(TypeError):
        _C.StageGraph(activations=pairs)
