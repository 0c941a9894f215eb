import sys
import types

import ml_dtypes
import numpy as np
import pytest

from eqsat.errors import DTypeError, EnvironmentMissingError, ShapeError, UsageError
from eqsat.search import arrays
from eqsat.types import DType


class OnGpu:
    """An array of some library that shares device memory through __cuda_array_interface__."""

    def __init__(self, shape, typestr, strides=None, pointer=0x1000, index=0, readonly=False):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "strides": strides, "data": (pointer, readonly), "version": 3,
        }  # fmt: skip
        if index is not None:
            self.device = types.SimpleNamespace(id=index)


def test_a_numpy_array_is_described():
    x = np.zeros((2, 3), np.float32)
    info = arrays.describe(x)
    assert (info.library, info.shape, info.dtype, info.device, info.contiguous) == ("numpy", (2, 3), DType.F32, "cpu", True)
    assert info.pointer == x.ctypes.data


def test_a_numpy_bfloat16_array_is_described():
    assert arrays.describe(np.zeros(4, ml_dtypes.bfloat16)).dtype is DType.BF16


def test_a_transposed_array_is_not_contiguous():
    assert not arrays.describe(np.zeros((2, 3)).T).contiguous


def test_a_read_only_array_is_not_writeable():
    x = np.zeros(3)
    x.flags.writeable = False
    assert not arrays.describe(x).writeable


def test_a_byte_swapped_array_has_no_dtype_of_ours():
    info = arrays.describe(np.zeros(3, ">f4"))
    assert info.dtype is None
    assert "not native" in info.raw_dtype


def test_an_array_on_a_gpu_is_described_through_its_interface():
    info = arrays.describe(OnGpu((4, 8), "<f2", pointer=0x4000, index=1))
    assert (info.shape, info.dtype, info.device, info.pointer, info.contiguous) == ((4, 8), DType.F16, "cuda:1", 0x4000, True)


def test_dense_strides_in_the_interface_are_contiguous_also_along_an_axis_of_extent_one():
    assert arrays.describe(OnGpu((4, 1, 8), "<f4", strides=(32, 999, 4))).contiguous
    assert not arrays.describe(OnGpu((4, 8), "<f4", strides=(64, 4))).contiguous


def test_an_empty_array_is_contiguous_whatever_its_strides():
    assert arrays.describe(OnGpu((0, 8), "<f4", strides=(1, 1))).contiguous


def test_an_opaque_two_byte_type_is_bfloat16():
    assert arrays.describe(OnGpu((8,), "<V2")).dtype is DType.BF16


class ThroughDLPack:
    """An array that offers nothing but DLPack."""

    def __init__(self, x):
        self._x = x

    def __dlpack__(self, **options):
        return self._x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


@pytest.mark.parametrize(
    ("dtype", "ours"), [(np.float64, DType.F64), (np.int32, DType.I32), (np.float16, DType.F16), (np.bool_, DType.BOOL)]
)
def test_a_dlpack_array_is_described_without_its_library(dtype, ours):
    x = np.zeros((3, 4), dtype)[1:]
    info = arrays.describe(ThroughDLPack(x))
    assert (info.shape, info.dtype, info.device, info.pointer, info.contiguous) == ((2, 4), ours, "cpu", x.ctypes.data, True)


def test_a_strided_dlpack_array_is_not_contiguous():
    assert not arrays.describe(ThroughDLPack(np.zeros((4, 4))[:, ::2])).contiguous


def test_what_is_no_array_is_refused_by_its_type():
    with pytest.raises(UsageError, match=r"expected an array .*; got list"):
        arrays.describe([1, 2])


def test_the_right_array_passes():
    assert arrays.require(OnGpu((4, 8), "<f4"), "x", (4, 8), DType.F32, "cuda:0", alignment=16).pointer == 0x1000


def test_bf16_may_come_as_its_bits_on_a_gpu_only():
    assert arrays.require(OnGpu((8,), "<u2"), "x", (8,), DType.BF16, "cuda:0").raw_dtype == "uint16"
    with pytest.raises(DTypeError, match="uint16"):
        arrays.require(np.zeros(8, np.uint16), "x", (8,), DType.BF16, "cpu")


def test_an_array_that_does_not_say_its_gpu_is_left_to_the_driver():
    assert arrays.require(OnGpu((8,), "<f4", index=None), "x", (8,), DType.F32, "cuda:3").device == "cuda"


@pytest.mark.parametrize(
    ("array", "error", "came"),
    [
        (OnGpu((4, 9), "<f4"), ShapeError, r"got shape \[4, 9\]"),
        (OnGpu((32,), "<f4"), ShapeError, r"got shape \[32\]"),
        (OnGpu((4, 8), "<f8"), DTypeError, "got dtype float64.*Cast it to f32"),
        (OnGpu((4, 8), "<c8"), DTypeError, "got dtype complex64"),
        (OnGpu((4, 8), "<f4", index=1), UsageError, r"on cuda:1.*Move it to cuda:0"),
        (np.zeros((4, 8), np.float32), UsageError, r"on cpu \(numpy\).*Move it to cuda:0"),
        (OnGpu((4, 8), "<f4", strides=(4, 16)), UsageError, "Make it contiguous"),
        (OnGpu((4, 8), "<f4", pointer=0x1004), UsageError, "aligned to 16 bytes; its first element is at 0x1004"),
        ([[1.0]], UsageError, "got list"),
    ],
)
def test_a_wrong_array_is_refused_with_what_was_expected_and_what_came(array, error, came):
    with pytest.raises(error, match=rf"argument 'weights': .*{came}") as caught:
        arrays.require(array, "weights", (4, 8), DType.F32, "cuda:0", alignment=16)
    if not isinstance(array, list):
        assert "expected f32[4, 8] on cuda:0" in str(caught.value)


def test_an_array_on_the_gpu_is_refused_by_a_cpu_kernel():
    with pytest.raises(UsageError, match="Copy it to the host first"):
        arrays.require(OnGpu((4, 8), "<f4"), "x", (4, 8), DType.F32, "cpu")


@pytest.fixture
def torch(monkeypatch):
    """Put a stand-in for PyTorch in place: the part that is asked about a tensor."""
    made = types.ModuleType("torch")

    class Tensor:
        def __init__(self, shape=(4, 8), dtype="torch.bfloat16", device="cuda", index=0, dense=True, layout="torch.strided"):
            self.shape, self.dtype, self.layout = (
                shape,
                getattr(made, dtype.removeprefix("torch."), dtype),
                getattr(made, layout[6:]),
            )
            self.device = types.SimpleNamespace(type=device, index=index)
            self._dense = dense

        def data_ptr(self):
            return 0x2000

        def is_contiguous(self):
            return self._dense

        def get_device(self):
            return self.device.index if self.device.type == "cuda" else -1

    class Name:
        def __init__(self, name):
            self.name = name

        def __str__(self):
            return f"torch.{self.name}"

    for name in ("bfloat16", "float32", "strided", "sparse_coo"):
        setattr(made, name, Name(name))
    made.Tensor = Tensor
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


def test_a_torch_tensor_is_described_without_dlpack(torch):
    info = arrays.describe(torch.Tensor())
    assert (info.library, info.shape, info.dtype, info.device, info.pointer) == ("torch", (4, 8), DType.BF16, "cuda:0", 0x2000)


def test_a_sparse_torch_tensor_is_not_contiguous(torch):
    assert not arrays.describe(torch.Tensor(layout="torch.sparse_coo")).contiguous


def test_the_quick_look_at_a_torch_tensor_agrees_with_the_full_one(torch):
    specs = [((4, 8), DType.BF16)]
    quick = arrays.quick_pointer(torch.Tensor(), specs, 0)
    assert quick(torch.Tensor(), 0) == 0x2000
    for wrong in (
        {"shape": (4, 9)},
        {"dtype": "torch.float32"},
        {"index": 1},
        {"dense": False},
        {"device": "cpu"},
        {"layout": "torch.sparse_coo"},
    ):
        assert quick(torch.Tensor(**wrong), 0) is None
        with pytest.raises(UsageError):
            arrays.require(torch.Tensor(**wrong), "x", (4, 8), DType.BF16, "cuda:0")


def test_a_missing_cupy_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        EnvironmentMissingError, match=r"expected the package cupy to hold outputs; .*pip install 'eqsat\[cuda\]'"
    ):
        arrays.require_cupy("to hold outputs")


def test_importing_the_module_imports_no_array_library_but_numpy():
    import subprocess

    code = "import sys, eqsat.search.arrays; print([m for m in ('torch', 'cupy', 'jax') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
