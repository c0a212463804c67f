"""Any checkpoint opens on one device, with the writer's config, code and mesh absent."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model import tree
from model.tree.archives import ArchiveError, groups, open_archive


def params(dtype=np.float32):
    random = np.random.default_rng(0)
    return {
        "encoder": {
            "layers": {"up": {"kernel": random.standard_normal((2, 8, 16)).astype(dtype)}},
            "norm.1": {"scale": random.standard_normal(8).astype(dtype)},
        },
        "step": np.int32(7),
    }


def save(path, params):
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, params)


def check(archive, expected, rename=lambda name: name):
    """Every array of `expected`, whole and in parts."""
    leaves = {rename(name): np.asarray(leaf) for name, leaf in tree.named_leaves(expected).items()}
    assert set(archive) == set(leaves)
    for name, leaf in leaves.items():
        stored = archive[name]
        assert (stored.shape, stored.dtype, stored.nbytes) == (leaf.shape, leaf.dtype, leaf.nbytes)
        np.testing.assert_array_equal(stored[...], leaf)
        np.testing.assert_array_equal(np.asarray(stored), leaf)
    kernel = rename("encoder/layers/up/kernel")
    for index in (np.s_[1], np.s_[-1, 2:5], np.s_[..., 3], np.s_[:, ::3, -2], np.s_[0, 5, 6]):
        np.testing.assert_array_equal(archive[kernel][index], leaves[kernel][index])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", [{}, {"use_zarr3": True}, {"use_ocdbt": False}])
def test_one_tree_of_plain_orbax(tmp_path, options, dtype):
    handler = ocp.PyTreeCheckpointHandler(**options)
    ocp.Checkpointer(handler).save(tmp_path / "saved", params(dtype))
    check(open_archive(tmp_path / "saved"), params(dtype))


def test_sharded_arrays_say_how_they_were_distributed(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("fsdp", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    kernel = jax.device_put(params()["encoder"]["layers"]["up"]["kernel"], sharding)
    save(tmp_path / "saved", {"kernel": kernel})
    archive = open_archive(tmp_path / "saved")
    assert archive["kernel"].sharding == "(-, fsdp, tensor) of fsdp=2 tensor=4"
    np.testing.assert_array_equal(archive["kernel"][1, 3:, 2], kernel[1, 3:, 2])


def test_steps_and_items_of_a_checkpoint_manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run", item_names=("state", "extra")) as manager:
        for step in (3, 12):
            state = jax.tree.map(lambda x, step=step: x + x.dtype.type(step), params())
            items = dict(state=ocp.args.StandardSave(state), extra=ocp.args.StandardSave({"rate": np.float32(0.5)}))
            manager.save(step, args=ocp.args.Composite(**items))
    archive = open_archive(tmp_path / "run")
    assert archive.path.name == "12"
    assert set(archive) == {"extra/rate", "state/step", "state/encoder/layers/up/kernel", "state/encoder/norm.1/scale"}
    assert groups(tmp_path / "run") == ["extra", "state"]
    third = open_archive(tmp_path / "run", step=3, group="state")
    assert third["step"][()] == 10
    with pytest.raises(ArchiveError, match="has no step 4; it has 3, 12"):
        open_archive(tmp_path / "run", step=4)
    with pytest.raises(ArchiveError, match="has no group 'params'; it has extra, state"):
        open_archive(tmp_path / "run", group="params")


def test_two_processes_with_four_devices_each(tmp_path):
    """Another program: it knows nothing of ours, and nothing of it is here when its checkpoint is opened."""
    program = textwrap.dedent("""
        import os, sys
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        import jax, numpy as np, orbax.checkpoint as ocp
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        jax.distributed.initialize("localhost:" + sys.argv[2], 2, int(sys.argv[1]))
        mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
        whole = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
        sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
        kernel = jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
        saver = ocp.StandardCheckpointer()
        saver.save(sys.argv[3], {"model": {"dense": {"kernel": kernel}}})
        saver.wait_until_finished()
    """)
    port = str(20_000 + int.from_bytes(str(tmp_path).encode(), "little") % 20_000)
    run = [sys.executable, "-c", program]
    running = [subprocess.Popen([*run, str(i), port, str(tmp_path / "saved")], stderr=subprocess.PIPE) for i in (0, 1)]
    told = [process.communicate(timeout=120)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    archive = open_archive(tmp_path / "saved")
    stored = archive["model/dense/kernel"]
    assert stored.sharding == "(fsdp, tensor) of fsdp=4 tensor=2"
    whole = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    np.testing.assert_array_equal(stored[...], whole)
    np.testing.assert_array_equal(stored[10:50, 31], whole[10:50, 31])


def shards(folder, tensors, most=300):
    from model.pretrained.storage import write_tensors

    write_tensors(folder, tensors.items(), most)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_sharded_safetensors_folder(tmp_path, dtype):
    pytest.importorskip("safetensors")
    leaves = {name.replace("/", "."): np.asarray(leaf) for name, leaf in tree.named_leaves(params(dtype)).items()}
    shards(tmp_path, leaves)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check(open_archive(tmp_path), params(dtype), rename=lambda name: name.replace(".", "/"))
    file = next(tmp_path.glob("*.safetensors"))
    assert len(open_archive(file)) < len(leaves)
    with pytest.raises(ArchiveError, match="safetensors have no step"):
        open_archive(tmp_path, step=3)


def first_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_what_is_no_checkpoint_is_said_in_a_sentence(tmp_path):
    with pytest.raises(ArchiveError, match="no such file or folder"):
        open_archive(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArchiveError) as error:
        open_archive(tmp_path / "empty")
    assert "there is no run, no orbax checkpoint and no .safetensors file here" in first_line(error)
    (tmp_path / "weights.bin").write_bytes(b"PK")
    with pytest.raises(ArchiveError, match="expected a folder, or a .safetensors file"):
        open_archive(tmp_path / "weights.bin")
    (tmp_path / "cut" / "5.orbax-checkpoint-tmp-1").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="a save was cut off there"):
        open_archive(tmp_path / "cut")


def damaged(path: Path, how: str) -> None:
    files = sorted((path for path in path.rglob("d/*")), key=lambda file: -file.stat().st_size)
    match how:
        case "list cut":
            for manifest in path.rglob("manifest.ocdbt"):
                manifest.write_bytes(manifest.read_bytes()[:20])
        case "list lost":
            for manifest in path.rglob("manifest.ocdbt"):
                manifest.unlink()
        case "data cut":
            files[0].write_bytes(files[0].read_bytes()[:100])
        case "data changed":
            contents = bytearray(files[0].read_bytes())
            contents[len(contents) // 2] ^= 0xFF
            files[0].write_bytes(contents)
        case "data lost":
            files[0].unlink()
        case "not JSON":
            (path / "_METADATA").write_text("{")
        case "other metadata":
            (path / "_METADATA").write_text('{"tree_metadata": {"x": {"keys": ["x"]}}}')
        case "other shardings":
            (path / "_sharding").write_text('{"a2VybmVs": "{\\"sharding_type\\": \\"NamedSharding\\"}"}')
        case "of the future":
            for manifest in path.rglob("manifest.ocdbt"):
                contents = bytearray(manifest.read_bytes())
                contents[12] = 200  # the version, after the magic number and the length
                manifest.write_bytes(contents)


@pytest.mark.parametrize(
    "how",
    [
        "list cut",
        "list lost",
        "data cut",
        "data changed",
        "data lost",
        "not JSON",
        "other metadata",
        "other shardings",
        "of the future",
    ],
)
def test_damage_is_said_in_a_sentence(tmp_path, how):
    save(tmp_path / "saved", {"kernel": jnp.ones((64, 64)) * jnp.arange(64)})
    damaged(tmp_path / "saved", how)
    with pytest.raises(ArchiveError) as error:
        for stored in open_archive(tmp_path / "saved").values():
            stored[...]
    assert str(tmp_path / "saved") in first_line(error)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "is cut short"),
        (b"\xff" * 64, "is cut short"),
        ((3).to_bytes(8, "little") + b"{x}", "is not a safetensors file"),
        ((2).to_bytes(8, "little") + b"{}", "hold no tensor"),
        ({"a": {"dtype": "F4_NEW", "shape": [2], "data_offsets": [0, 1]}}, "the type 'F4_NEW' is unknown"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "should end at byte"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "which is not its shape's"),
    ],
)
def test_damaged_safetensors_are_said_in_a_sentence(tmp_path, contents, said):
    if isinstance(contents, dict):
        header = json.dumps(contents).encode()
        contents = len(header).to_bytes(8, "little") + header
    (tmp_path / "model.safetensors").write_bytes(contents)
    with pytest.raises(ArchiveError, match=said) as error:
        open_archive(tmp_path)
    first_line(error)
