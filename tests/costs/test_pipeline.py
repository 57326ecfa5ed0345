"""Pipelines over layers that share tiles: which stay, what is rewritten, how long a batch takes."""

import pytest

from analog_grasp.costs.work import Pipeline, Stage

STAGES = [Stage("a", 2, 10), Stage("b", 3, 10), Stage("c", 4, 10), Stage("d", 1, 1)]


def names(pipeline):
    return [[stage.name for stage in load.stages] for load in pipeline.loads]


def test_all_tiles():
    full = Pipeline(STAGES, 1e-6, None)
    assert full.needed == 10
    assert full.rewritten == 0
    assert names(full) == [["a", "b", "c", "d"]]
    # The last of 10 vectors enters the first layer after 9 reads and leaves the last after 4.
    assert full.latency() == pytest.approx(13e-6)
    assert full.latency(5) == pytest.approx(53e-6)


def test_layers_share_the_tiles_that_are_left():
    # "a" stays and leaves room for "c"; "b" comes with it in the first load.
    shared = Pipeline(STAGES, 1e-6, 1e-3, available=6)
    assert shared.resident == 1
    assert names(shared) == [["a", "b"], ["c"], ["d"]]
    assert shared.rewritten == 8
    loads = shared.loads
    reads = sum(len(load.stages) - 1 + max(s.reads for s in load.stages) for load in loads)
    assert shared.latency() == pytest.approx(reads * 1e-6 + len(loads) * 1e-3)


def test_a_layer_that_needs_more_tiles_than_there_are_is_loaded_in_parts():
    one = Pipeline([Stage("large", 7, 10)], 1e-6, 1e-3, available=3)
    assert [load.parts for load in one.loads] == [3]
    assert one.latency() == pytest.approx(3 * 10e-6 + 3e-3)


@pytest.mark.parametrize("available", range(1, 11))
def test_every_layer_is_loaded_once_within_the_tiles(available):
    pipeline = Pipeline(STAGES, 1e-6, 1e-3, available)
    assert [name for load in names(pipeline) for name in load] == ["a", "b", "c", "d"]
    for load in pipeline.loads:
        tiles = sum(stage.tiles for stage in load.stages)
        assert tiles <= available * load.parts


def test_fewer_tiles_never_rewrite_less():
    rewritten = [Pipeline(STAGES, 1e-6, 1e-3, n).rewritten for n in range(1, 11)]
    assert rewritten == sorted(rewritten, reverse=True)
    assert rewritten[-1] == 0


def test_throughput_grows_with_the_batch_where_tiles_are_rewritten():
    shared = Pipeline(STAGES, 1e-6, 1e-3, available=6)
    speeds = [shared.throughput(batch) for batch in (1, 8, 64)]
    assert speeds == sorted(speeds)
    assert speeds[2] > 10 * speeds[0]


def test_times_that_are_not_stated_are_missing():
    assert Pipeline(STAGES, None, 1e-3).latency() is None
    assert Pipeline(STAGES, 1e-6, None, available=6).throughput() is None
    assert Pipeline(STAGES, 1e-6, None).latency() is not None
