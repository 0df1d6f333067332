"""`.nemo` files: read in place and extracted, refused when unsafe, never half written."""

import io
import json
import tarfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from neva.formats.hf_folder import FolderWeights, write_weights
from neva.formats.nemo import open_nemo, write_nemo
from neva.formats.safetensors import HEADER_BYTES, TensorFile

CONFIG = {"vocab_size": 5, "hidden_size": 4, "rope_scaling": None}
EMBEDDING = "language_model.embedding.word_embeddings.weight"
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5]}


def tensors():
    torch.manual_seed(0)
    return {
        EMBEDDING: torch.randn(8, 4).to(torch.bfloat16),
        "projector.0.weight": torch.randn(3, 7),
        "projector.0.bias": torch.randn(3).half(),
        "scalar": torch.tensor(2.5),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def tokenizer_dir(tmp_path):
    folder = tmp_path / "tok"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def nemo_path(tmp_path, tokenizer_dir):
    path = tmp_path / "m.nemo"
    write_nemo(
        path,
        CONFIG,
        tensors().items(),
        tokenizer_dir,
        PROCESSOR,
        "a test",
        {"projector": "trained"},
        shard_bytes=60,
    )
    return path


def assert_content(nemo):
    expected = tensors()
    expected[EMBEDDING] = expected[EMBEDDING][:5]
    assert set(nemo.weights) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(nemo.weights[name], tensor)
        assert nemo.weights[name].dtype == tensor.dtype
    assert nemo.config == CONFIG
    assert nemo.image_processor == PROCESSOR
    assert nemo.manifest["source"] == "a test"
    nemo.verify()


def test_reads_in_the_archive_and_extracted(nemo_path, tmp_path):
    assert_content(open_nemo(nemo_path))
    with tarfile.open(nemo_path) as archive:
        archive.extractall(tmp_path / "x", filter="data")
    assert_content(open_nemo(tmp_path / "x"))
    tokenizer = open_nemo(nemo_path).extract_tokenizer(tmp_path / "out")
    assert (tokenizer / "tokenizer.json").read_text() == "{}"


def test_shards_are_plain_safetensors(nemo_path, tmp_path):
    with tarfile.open(nemo_path) as archive:
        archive.extractall(tmp_path / "x", filter="data")
    shards = sorted((tmp_path / "x" / "model_weights").glob("*.safetensors"))
    assert len(shards) > 1
    merged = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert torch.equal(merged["projector.0.weight"], tensors()["projector.0.weight"])
    index = json.loads((tmp_path / "x/model_weights/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(merged)


def test_same_content_gives_same_bytes(nemo_path, tmp_path, tokenizer_dir):
    again = tmp_path / "again.nemo"
    write_nemo(
        again,
        CONFIG,
        tensors().items(),
        tokenizer_dir,
        PROCESSOR,
        "a test",
        {"projector": "trained"},
        shard_bytes=60,
    )
    assert again.read_bytes() == nemo_path.read_bytes()


def test_existing_target_is_refused_and_kept(nemo_path, tokenizer_dir):
    before = nemo_path.read_bytes()
    with pytest.raises(ValueError, match="exists.*--force"):
        write_nemo(nemo_path, CONFIG, tensors().items(), tokenizer_dir, PROCESSOR, "", {})
    assert nemo_path.read_bytes() == before
    write_nemo(nemo_path, CONFIG, tensors().items(), tokenizer_dir, None, "", {}, overwrite=True)
    assert open_nemo(nemo_path).image_processor is None


def test_interrupted_write_leaves_nothing(tmp_path):
    def broken():
        yield EMBEDDING, torch.ones(5, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_nemo(tmp_path / "m.nemo", CONFIG, broken(), None, None, "", {})
    assert list(tmp_path.iterdir()) == []


def test_verify_names_the_changed_member(nemo_path):
    content = bytearray(nemo_path.read_bytes())
    file, start, _ = open_nemo(nemo_path).members["model_weights/model-00001.safetensors"]
    content[start + HEADER_BYTES + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="model-00001.safetensors has sha256"):
        open_nemo(nemo_path).verify()


def test_truncated_file_is_refused(nemo_path):
    content = nemo_path.read_bytes()
    nemo_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cut short|incomplete"):
        open_nemo(nemo_path)


def archive_with(path, name, content=b"", **fields):
    with tarfile.open(path, "w") as archive:
        for member, data in (("model_config.yaml", b"a: 1"), ("manifest.json", b'{"format": "neva-1"}')):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "model_weights/../../x"])
def test_members_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads outside"):
        open_nemo(archive_with(tmp_path / "m.nemo", name, b"x"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="not a regular file"):
        open_nemo(archive_with(tmp_path / "m.nemo", "x", type=kind, linkname="model_config.yaml"))


@pytest.mark.parametrize("key", ["target", "_target_"])
def test_classes_outside_neva_are_refused(tmp_path, key):
    config = {**CONFIG, "list": [{"deep": {key: "os.system"}}]}
    with pytest.raises(ValueError, match=f"list.0.deep.{key} names the class 'os.system'"):
        write_nemo(tmp_path / "m.nemo", config, [], None, None, "", {})
    with pytest.raises(ValueError, match="only classes of neva"):
        open_nemo(archive_with_config(tmp_path / "n.nemo", f"{key}: os.system"))


def archive_with_config(path, text):
    with tarfile.open(path, "w") as archive:
        for member, data in (
            ("model_config.yaml", text.encode()),
            ("manifest.json", b'{"format": "neva-1"}'),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_nemo(tmp_path / "none.nemo")
    (tmp_path / "text.nemo").write_text("hello")
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        open_nemo(tmp_path / "text.nemo")


class TestFolders:
    def test_sharded_folder_has_transformers_layout(self, tmp_path):
        assert write_weights(tmp_path, tensors().items(), shard_bytes=60) == 6
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names[0].startswith("model-00001-of-0000")
        weights = FolderWeights(tmp_path)
        assert all(torch.equal(weights[name], tensor) for name, tensor in tensors().items())
        with safe_open(tmp_path / names[0], framework="pt") as file:
            assert file.metadata() == {"format": "pt"}

    def test_one_shard_needs_no_index(self, tmp_path):
        write_weights(tmp_path, tensors().items())
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_reads_the_package_own_files_and_bins(self, tmp_path):
        save_file(tensors(), tmp_path / "model.safetensors")
        assert all(torch.equal(FolderWeights(tmp_path)[name], tensor) for name, tensor in tensors().items())
        (tmp_path / "model.safetensors").unlink()
        halves = list(tensors().items())
        torch.save(dict(halves[:3]), tmp_path / "a.bin")
        torch.save(dict(halves[3:]), tmp_path / "b.bin", _use_new_zipfile_serialization=False)
        where = {name: "a.bin" if index < 3 else "b.bin" for index, (name, _) in enumerate(halves)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
        assert all(torch.equal(FolderWeights(tmp_path)[name], tensor) for name, tensor in tensors().items())

    def test_index_that_leads_outside_is_refused(self, tmp_path):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}}))
        with pytest.raises(ValueError, match="names the file"):
            FolderWeights(tmp_path)

    def test_cut_file_is_refused(self, tmp_path):
        save_file(tensors(), tmp_path / "model.safetensors")
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[:-5])
        with pytest.raises(ValueError, match="cut short"):
            TensorFile(tmp_path / "model.safetensors")

    def test_more_tensors_than_a_header_holds_open_another_shard(self, tmp_path):
        many = {f"layer.{index}.{'x' * 60}": torch.tensor([index]) for index in range(600)}
        assert write_weights(tmp_path, many.items()) == 600
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        weights = FolderWeights(tmp_path)
        assert all(torch.equal(weights[name], tensor) for name, tensor in many.items())
