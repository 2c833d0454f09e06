"""Files are read by their content, and nothing in them is run."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from harness.errors import DataError
from harness.weights.read import read
from tests.weights import files


class Bomb:
    def __init__(self, trap) -> None:
        self.trap = trap

    def __reduce__(self):
        return (type(self.trap).touch, (self.trap,))


@pytest.mark.parametrize("layout", files.LAYOUTS)
def test_every_layout_whatever_the_file_is_called(layout, tmp_path):
    state = files.network().state_dict()
    path = tmp_path / "weights"
    files.LAYOUTS[layout](path, state)
    content = read(path)
    numbers = {tuple(np.sort(tensor.numpy().ravel())) for tensor in content.tensors.values()}
    for value in state.values():
        assert tuple(np.sort(value.numpy().ravel())) in numbers
    assert ("lr" in content.others) == (layout == "caffe2")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(protocol, tmp_path):
    arrays = OrderedDict(
        w=np.random.randn(3, 4),
        turned=np.asfortranarray(np.random.randn(3, 2).astype(np.float32)),
        scalar=np.float64(2.5),
        steps=np.int64(7),
    )
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    found = read(path)
    np.testing.assert_array_equal(found.tensors["w"].numpy(), arrays["w"])
    np.testing.assert_array_equal(found.tensors["turned"].numpy(), arrays["turned"])
    assert set(found.others) == {"scalar", "steps"}


def test_a_pickle_of_python_2(tmp_path):
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    # As Python 2 writes it: texts are bytes, named by the old name of NumPy's module.
    text = pickle.dumps({"conv1_w": array}, protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    path = tmp_path / "old.pkl"
    path.write_bytes(text)
    np.testing.assert_array_equal(read(path).tensors["conv1_w"].numpy(), array)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {"w": x}}, lambda x: [x]])
@pytest.mark.parametrize("save", ["pickle0", "pickle2", "pickle5", "torch", "legacy", "npz"])
def test_code_in_a_file_is_never_run(wrap, save, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "weights"
    content = wrap(Bomb(trap))
    if save.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(save[-1])))
    elif save == "npz":
        with path.open("wb") as file:
            np.savez(file, w=np.array([content], dtype=object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(DataError, match="not a file of tensors") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I99999999999\ntS'b'\ntR.",
        b"c_codecs\nencode\n(Va\nVrot13\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRtR.",
    ],
)
def test_only_arrays_are_built(code, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(code)
    with pytest.raises(DataError, match="not a file of tensors"):
        read(path)


def test_what_is_damaged_or_something_else_is_one_line(tmp_path):
    state = files.network().state_dict()
    for layout, write in files.LAYOUTS.items():
        path = tmp_path / layout
        write(path, state)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError) as caught:
            read(path)
        assert "\n" not in str(caught.value), layout
    for content in (b"", b"hello", b"\x80\x02N.", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read(path)
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "absent")
