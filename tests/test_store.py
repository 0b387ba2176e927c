import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latpred.errors import ArtefactError
from latpred.graph import Spec
from latpred.kernels.kernel import Context, Kernel, Work
from latpred.kernels.work import COUNTED
from latpred.packing import pack_kernel, signature, unpack_kernel
from latpred.store import Dataset, Meta

META = Meta("local", "EPYC", "onnxruntime", "1.31.1", threads=1)


def relu(name="r", shape=(1, 8)):
    return Kernel("relu", "Relu", "", name, (name,), (Spec(shape),), (Spec(shape),))


def row(kernel, latency_s, spread=0.0):
    return {**pack_kernel(kernel), "latency_s": latency_s, "samples": 9, "spread": spread}


def test_a_record_comes_back_as_it_went(tmp_path):
    dataset = Dataset.create(tmp_path / "d", META, 'name = "x"\n', "[rules]\n")
    records = [{"seed": i, "kernels": []} for i in range(5)]
    for record in records:
        dataset.append(record)
    again = Dataset.open(tmp_path / "d")
    assert list(again.records()) == records
    assert len(again) == 5
    assert again.meta == META
    assert (tmp_path / "d" / "device.toml").read_text() == 'name = "x"\n'
    assert again.notices == []


@pytest.mark.parametrize("lost", [1, 9, 40])
def test_a_torn_last_record_costs_only_itself(tmp_path, lost):
    dataset = Dataset.create(tmp_path, META)
    for i in range(3):
        dataset.append({"seed": i, "text": "abcdefghijklmnopqrstuvwxyz0123456789" * 3})
    data = dataset.measurements.read_bytes()
    dataset.measurements.write_bytes(data[:-lost])
    again = Dataset.open(tmp_path)
    assert [r["seed"] for r in again.records()] == [0, 1]
    assert "cut short" in again.notices[0]
    again = Dataset.open(tmp_path)
    again.append({"seed": 7})
    assert [r["seed"] for r in Dataset.open(tmp_path).records()] == [0, 1, 7]


def test_damage_in_the_middle_is_an_error(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    for i in range(3):
        dataset.append({"seed": i})
    data = bytearray(dataset.measurements.read_bytes())
    data[12] ^= 0xFF
    dataset.measurements.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match="damaged"):
        list(Dataset.open(tmp_path).records())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"threads": 2}, "threads: 1 here, 2 there"),
        ({"processor": "Xeon"}, "processor: EPYC here, Xeon there"),
        ({"runtime_version": "1.30"}, "runtime_version"),
        ({"options": {"a": "b"}}, "options"),
    ],
)
def test_other_conditions_never_mix(tmp_path, change, word):
    Dataset.create(tmp_path, META)
    with pytest.raises(ArtefactError, match=word):
        Dataset.open_or_create(tmp_path, replace(META, **change))


def test_the_seed_and_the_noise_floor_may_differ(tmp_path):
    Dataset.create(tmp_path, META).note_noise_floor({"same_process": 0.01})
    assert Dataset.open_or_create(tmp_path, replace(META, seed=3)).meta.noise_floor == {"same_process": 0.01}


def test_unknown_schema_is_refused(tmp_path):
    Dataset.create(tmp_path, META)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "schema_version": 99}))
    with pytest.raises(ArtefactError, match=r"schema version 2 is needed.* has 99"):
        Dataset.open(tmp_path)


def test_no_dataset_names_the_command(tmp_path):
    with pytest.raises(ArtefactError, match="latpred collect"):
        Dataset.open(tmp_path / "none")


def test_creating_twice_is_refused(tmp_path):
    Dataset.create(tmp_path, META)
    with pytest.raises(ArtefactError, match="empty folder"):
        Dataset.create(tmp_path, META)


def test_equal_kernels_merge_within_a_record_only(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    dataset.append({"kernels": [row(relu("a"), 2e-6), row(relu("b"), 4e-6), row(relu("c", (2, 8)), 9e-6)]})
    dataset.append({"kernels": [row(relu("a"), 5e-6)]})
    rows = dataset.kernels()
    assert [(r.latency_s, r.record) for r in rows] == [
        (pytest.approx((2e-6 + 4e-6) / 2), 0),
        (pytest.approx(9e-6), 0),
        (pytest.approx(5e-6), 1),
    ]
    assert rows[0].group == rows[2].group != rows[1].group


def test_a_noisy_launch_weighs_less(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    dataset.append({"kernels": [row(relu("a"), 2e-6), row(relu("b"), 8e-6, spread=0.6)]})
    # weights 1 and 1 / (1 + 10 * 0.6 / sqrt(9 samples)) = 1/3
    assert dataset.kernels()[0].latency_s == pytest.approx((2e-6 + 8e-6 / 3) / (1 + 1 / 3))


def test_disturbed_records_and_repeats_do_not_teach(tmp_path):
    dataset = Dataset.create(tmp_path, META)
    dataset.append({"kernels": [row(relu(), 2e-6)], "role": "sample"})
    dataset.append({"kernels": [row(relu(), 3e-6)], "role": "repeat"})
    dataset.append({"kernels": [row(relu(), 4e-6)], "role": "sample"})
    dataset.append({"role": "void", "voids": [0]})
    dataset.append({"role": "failed", "error": "it crashed"})
    dataset.append({"kernels": [row(relu(), 5e-6)], "role": "sample"})
    assert [(r.latency_s, r.record) for r in dataset.kernels()] == [(pytest.approx(4e-6), 2), (pytest.approx(5e-6), 5)]
    assert [ordinal for ordinal, _ in dataset.samples()] == [2, 5]


specs = st.builds(
    Spec,
    st.lists(st.integers(0, 4096), max_size=5).map(tuple),
    st.sampled_from(["float32", "int8", "bool", "int64"]),
    st.booleans(),
)
attribute_values = st.one_of(
    st.integers(), st.text(max_size=5), st.lists(st.integers(), min_size=1, max_size=3).map(tuple)
)


@given(
    st.builds(
        Kernel,
        kind=st.text(max_size=8),
        op_type=st.text(max_size=8) | st.sampled_from(sorted(COUNTED)),
        domain=st.sampled_from(["", "com.microsoft"]),
        name=st.text(max_size=8),
        ops=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        inputs=st.lists(specs, max_size=3).map(tuple),
        outputs=st.lists(specs, max_size=2).map(tuple),
        attributes=st.dictionaries(st.text(max_size=4), attribute_values, max_size=3),
        epilogue=st.lists(st.sampled_from(["add", "relu"]), max_size=2).map(tuple),
        work=st.builds(Work, *[st.integers(0, 10**12)] * 5),
        context=st.builds(Context, *[st.integers(0, 10**9)] * 3),
        repeat=st.integers(1, 9),
    )
)
def test_packing_loses_nothing(kernel):
    assert unpack_kernel(json.loads(json.dumps(pack_kernel(kernel)))) == kernel


def test_signature_ignores_names_and_surroundings():
    kernel = relu()
    assert signature(replace(kernel, name="other", ops=("x",), context=Context(5, 5, 5))) == signature(kernel)
    assert signature(replace(kernel, epilogue=("add",))) != signature(kernel)
    assert signature(replace(kernel, attributes={"alpha": 2})) != signature(kernel)
    assert signature(relu(shape=(1, 9))) != signature(kernel)
