"""PyTorch's files without PyTorch: what it wrote is what it reads; and nothing in a file runs, or takes memory."""

import contextlib
import functools
import io
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from alexnet_jax.networks import pth
from alexnet_jax.options import InputError

# What PyTorch wrote


def forms(torch, zipped):
    """State dicts of every kind of tensor, and of things that may stand beside them."""
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    norm = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    adam = torch.optim.Adam(norm.parameters())
    norm(torch.zeros(2, 3, 5, 5)).sum().backward()
    adam.step()
    kinds = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    kinds += ["uint16", "uint32", "uint64"] if zipped else []  # else PyTorch does not read what it wrote
    yield "types", {kind: (10 * base).abs().to(getattr(torch, kind)) for kind in kinds}
    yield "views", {"all": base, "row": base[2], "column": base[:, 1], "turned": base.t(), "part": base[1:5:2, 1:3]}
    yield "shapes", {"none": torch.zeros(0, 3), "one": torch.tensor(3.5), "five": torch.randn(1, 2, 1, 2, 1)}
    yield "channels last", {"a": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    yield "parameters", {"a": torch.nn.Parameter(base), "b": torch.nn.Parameter(base[0], requires_grad=False)}
    yield "a module's", norm.state_dict()
    beside = {
        "epoch": 3, "best": 0.5, "name": "AlexNet", "none": None, "flag": True, "long": 2**70, "bytes": b"ab",
        "optimizer": adam.state_dict(), "size": base.shape, "device": torch.device("cpu"), "dtype": torch.float32,
        "nested": [1, (2, 3), {"a": [4]}], "keys": {1: 2, 0.5: 3, None: 4},
    }  # fmt: skip
    for name in ("state_dict", "model_state_dict", "model"):
        yield name, {**beside, name: norm.state_dict()}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_what_pytorch_wrote_is_what_it_reads(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    file = tmp_path / "a.pth"
    for name, state in forms(torch, zipped):
        torch.save(state, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        expected = state if protocol == 4 else torch.load(file, weights_only=True)
        expected = expected.get(name, expected)
        found = pth.read(file)
        assert list(found) == list(expected)
        for key, tensor in expected.items():
            assert found[key].dtype.name == str(tensor.dtype).removeprefix("torch."), name
            assert found[key].shape == tuple(tensor.shape)
            wide = tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
            np.testing.assert_array_equal(found[key].astype(wide.numpy().dtype), wide.numpy(), strict=True)


def test_an_array_shares_the_memory_of_its_storage(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    base = torch.zeros(1000, 1000)
    torch.save({str(number): base[number:].t() for number in range(500)}, tmp_path / "a.pth")
    tracemalloc.start()
    assert len(pth.read(tmp_path / "a.pth")) == 500
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * base.numel() * 4


# What anybody may write: a small assembler of pickles


def ask(module, name):
    return f"c{module}\n{name}\n".encode()


def data(value):
    return pickle.dumps(value, 2)[2:-1]


def many(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(function, *parts):
    return function + many(*parts) + b"R"


def storage(key="0", length=6, kind=("torch", "FloatStorage")):
    return many(data("storage"), ask(*kind), data(key), data("cpu"), data(length)) + b"Q"


V2 = ask("torch._utils", "_rebuild_tensor_v2")


def tensor(held=None, offset=0, shape=(2, 3), strides=(3, 1), hooks=b"}", function=V2, more=()):
    parts = (data(offset), data(shape), data(strides), data(False), hooks, *more)
    return call(function, storage() if held is None else held, *parts)


def program(value, name="a"):
    return b"\x80\x02}" + data(name) + value + b"s."


NUMBERS = np.arange(6, dtype="<f4")


def zipped(content, storages=None, **others):
    """As `torch.save` writes it."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as members:
        members.writestr("a/data.pkl", content)
        for name, bits in {**others, "version": b"3\n"}.items():
            members.writestr(f"a/{name}", bits)
        for key, bits in (storages or {"0": NUMBERS.tobytes()}).items():
            members.writestr(f"a/data/{key}", bits)
    return written.getvalue()


def legacy(value, keys=("0",), lengths=(6,), bits=None):
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    value = value.replace(data("cpu") + data(6), data("cpu") + data(6) + b"N")  # the view of a storage
    content = b"".join(pickle.dumps(head, 2) for head in heads) + value + pickle.dumps(list(keys), 2)
    bits = NUMBERS.tobytes() if bits is None else bits
    return content + b"".join(struct.pack("<q", length) + bits for length in lengths)


def state_dict(tensors):
    """Arrays of float32 by name, as `torch.save` writes them."""
    items = [
        data(name) + tensor(storage(str(number), of.size), 0, of.shape, tuple(step // 4 for step in of.strides))
        for number, (name, of) in enumerate(tensors.items())
    ]
    content = b"\x80\x02}(" + b"".join(items) + b"u."
    return zipped(content, {str(number): of.tobytes() for number, of in enumerate(tensors.values())})


def read(tmp_path, content):
    file = tmp_path / "a.pth"
    file.write_bytes(content)
    return pth.read(file)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_the_assembler_writes_what_is_read_where_there_is_no_pytorch(tmp_path, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(read(tmp_path, write(program(tensor())))["a"], NUMBERS.reshape(2, 3))


def test_pytorch_reads_what_the_assembler_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    tensors = {"a": NUMBERS.reshape(2, 3), "b": np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)}
    found = torch.load(io.BytesIO(state_dict(tensors)), weights_only=True)
    assert [*found] == [*read(tmp_path, state_dict(tensors))] == [*tensors]
    for name, of in tensors.items():
        np.testing.assert_array_equal(found[name].numpy(), of, strict=True)
        np.testing.assert_array_equal(read(tmp_path, state_dict(tensors))[name], of, strict=True)


def test_numbers_of_a_machine_with_another_order_are_turned_around(tmp_path):
    for kind, name in ((">f4", "Float"), (">f8", "Double"), (">i2", "Short"), ("u1", "Byte")):
        content = program(tensor(storage(kind=("torch", f"{name}Storage"))))
        found = read(tmp_path, zipped(content, {"0": NUMBERS.astype(kind).tobytes()}, byteorder=b"big"))["a"]
        np.testing.assert_array_equal(found, NUMBERS.reshape(2, 3).astype(kind[-2:]), strict=True)


NESTED = many() + b"2\x86" * 20  # 40 bytes; its text has 4 MB
RAN = call(ask("builtins", "exec"), data("open('ran', 'w')"))
HUGE = 2**40
ATTACKS = {
    "a function": (RAN, "asks for builtins.exec"),
    "a module of PyTorch": (ask("torch.nn.modules.conv", "Conv2d") + b")\x81", "asks for torch.nn.modules.conv.Conv2d"),
    "a function of a function": (call(call(ask("builtins", "getattr"), V2, data("x"))), "asks for builtins.getattr"),
    "a state of a function": (V2 + b"}" + data("make") + V2 + b"sb", "a Maker with a state"),
    "a state of a tensor": (tensor() + b"}b", "Tensor with a state"),
    "a call of a text": (call(data("exec"), data("1")), "it calls what is no function"),
    "an instruction that makes objects": (V2 + b")\x81", "damaged pickle: an instruction that builds no data"),
    "an instruction that finds classes": (b"(ibuiltins\nexec\n", "damaged pickle: an instruction that builds no data"),
    "an encoding that is a long text": (call(ask("_codecs", "encode"), data("x"), NESTED), "another encoding than"),
    "a text that is none": (call(ask("_codecs", "encode"), NESTED, data("latin1")), "another encoding than"),
    "a long name of a storage": (tensor(storage("k" * 10**5)), "no item named 'a/data/kkk"),
    "an item of a tensor": (tensor() + data("a") + data(1) + b"s", "puts a str into a _Tensor"),
    "a key that takes years": (b"}" + many() + b"2\x862\x86" * 60 + data(1) + b"s", "puts a tuple into a dict"),
    "a number that is too long": (b"\x8b\xff\xff\xff\x7f", "damaged pickle"),
    "memory for bytes": (b"\x96" + struct.pack("<Q", 2**40), "damaged pickle"),
    "more than there is": (tensor(shape=(3, 3)), r"a: its shape is \(3, 3\), and its storage has 6 numbers"),
    "the same again and again": (tensor(shape=(HUGE,), strides=(0,)), r"a: its shape is \(1099511627776,\)"),
    "beyond its end": (tensor(offset=1), r"a: its shape is \(2, 3\)"),
    "steps beyond its end": (tensor(strides=(HUGE, 1)), r"a: its shape is \(2, 3\)"),
    "before its beginning": (tensor(offset=-1), "a: its offset, shape or strides are none"),
    "a negative step": (tensor(strides=(-3, 1)), "a: its offset, shape or strides are none"),
    "a shape of decimals": (tensor(shape=(2.0, 3)), "a: its offset, shape or strides are none"),
    "a shape of no numbers": (tensor(shape=True), "a: it has no storage, shape or strides"),
    "a shape of a hundred": (tensor(shape=(1,) * 100, strides=(0,) * 100), "a: its offset, shape or strides are none"),
    "too few strides": (tensor(strides=(1,)), "a: zip"),
    "a huge storage": (tensor(storage(length=HUGE)), "a: its storage has 24 bytes"),
    "a storage of another type": (tensor(storage(kind=("torch", "DoubleStorage"))), "a: its storage has 24 bytes"),
    "a storage that is not there": (tensor(storage("1")), "a: .*There is no item|a: '1'"),
    "a storage elsewhere": (tensor(storage("../data.pkl", 1)), "a: .*There is no item"),
    "a storage of no length": (tensor(storage(length=-1)), "a storage that is none"),
    "a storage of no type": (tensor(storage(kind=("torch", "Size"))), "a storage that is none"),
    "no storage": (tensor(data(b"abc")), "a: it has no storage"),
    "a module": (many(data("module"), V2) + b"Q", "something else than storages"),
    "hooks": (tensor(hooks=b"}" + data("a") + data(1) + b"s"), "it has hooks"),
    "the negative of its storage": (tensor(more=(b"}" + data("neg") + b"\x88s",)), "or is the negative"),
    "no arguments": (call(V2), "damaged pickle"),
    "a number": (data(5), r"is no state dict of tensors \(a in it is of type int\)"),
    "a long name": (data(5), r"x…? in it is of type int", "x" * 10**5),
    "a long name of a tensor": (tensor(offset=1), "…: its shape is", "x" * 10**5),
    "numbers that have one place in a dict": (
        b"}(" + b"".join(data(n * (2**61 - 1)) + b"N" for n in range(1, 10**4)) + b"u", "puts a int into a dict"
    ),
    "a list in itself": (b"]q\x00h\x00a", r"is no state dict of tensors \(a in it is of type list\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_attacks_is_one_line_and_nothing_runs(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    value, message, *name = ATTACKS[kind]
    for write, expected in ((zipped, message), (legacy, "")):  # which find some of it at other places
        tracemalloc.start()
        with pytest.raises(InputError, match=rf"^\S*a\.pth: .*({expected})") as caught:
            read(tmp_path, write(program(value, *name)))
        assert tracemalloc.get_traced_memory()[1] < 2e6
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < len(str(tmp_path)) + 350
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_is_none_is_one_line(tmp_path):
    whole = zipped(program(tensor()))
    compressed, overlapping = (
        io.BytesIO(),
        bytearray(zipped(program(tensor()), {str(n): bytes(10**4) for n in range(3)})),
    )
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("a/data.pkl", program(tensor()))
        members.writestr("a/data/0", NUMBERS.tobytes())
    for place in [n for n in range(len(overlapping)) if overlapping[n : n + 4] == b"PK\1\2"]:  # sizes in the directory
        overlapping[place + 20 : place + 28] = struct.pack("<II", 10**5, 10**5)
    for content, message in (
        (b"", "is damaged"),
        (b"PK\3\4", "is damaged"),
        (whole[:-30], "is damaged"),
        (whole.replace(NUMBERS.tobytes(), NUMBERS[::-1].tobytes()), r"is damaged \(a: Bad CRC-32"),
        (compressed.getvalue(), "it says that it holds more than it does|is compressed"),
        (bytes(overlapping), "it says that it holds more than it does"),
        (zipped(program(tensor()), byteorder=b"middle"), "its byte order is none"),
        (zipped(b"\x80\x02}."), r"is no state dict of tensors \(it holds none\)"),
        (whole.replace(b"data.pkl", b"data.pkx"), "There is no item named 'a/data.pkl'"),
        (pickle.dumps({"a": 1}), "no file of torch.save"),
        (legacy(program(tensor()), lengths=(5,)), "its storage 0 is not whole"),
        (legacy(program(tensor()), bits=b"abc"), "its storage 0 is not whole"),
        (legacy(program(tensor()), keys=()), r"is damaged \(a: '0'\)"),
        (legacy(program(tensor()), keys=("0", "1")), "is damaged"),
        (legacy(program(tensor()), keys=("0", functools.reduce(lambda of, _: (of, of), range(20), ()))), "its list of"),
        (legacy(program(tensor()), keys=(0,)), "its list of storages is none"),
    ):
        with pytest.raises(InputError, match=rf"^\S*a\.pth: is .*{message}|^\S*a\.pth: {message}"):
            read(tmp_path, content)
    with pytest.raises(InputError, match=r"none\.pth: is not there"):
        pth.read(tmp_path / "none.pth")
    with pytest.raises(InputError, match="is no plain file"):
        pth.read(tmp_path)


@pytest.mark.parametrize("write", [zipped, legacy])
def test_a_damaged_file_is_one_line_or_the_same_numbers(tmp_path, write):
    whole = write(program(tensor()))
    rng, read_on = np.random.default_rng(0), 0
    for place in range(0, len(whole), 5 if write is zipped else 2):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        for content in (bytes(damaged), whole[:place]):
            with contextlib.suppress(InputError):
                found, read_on = read(tmp_path, content), read_on + 1
                assert all(of.nbytes <= len(whole) for of in found.values())
    assert read_on < len(whole) / 5
