import chex
import jax
import jax.numpy as jnp
import pytest
from cases import make_network

import fnn


def test_a_training_state_comes_back_as_it_was(tmp_path):
    optimizer = fnn.sgd(0.1, momentum=0.9)
    state = fnn.init_train_state(make_network(), optimizer, jax.random.key(0))
    fnn.save(tmp_path / "state.npz", state)
    other = fnn.init_train_state(make_network(), optimizer, jax.random.key(1))
    chex.assert_trees_all_equal(fnn.load(tmp_path / "state.npz", other), state)


def test_entries_are_named_by_their_place(tmp_path):
    fnn.save(tmp_path / "params.npz", {"params": ({"W": jnp.ones(2)}, (), {"b": jnp.zeros(1)})})
    with jnp.load(tmp_path / "params.npz") as file:
        assert sorted(file) == ["params/0/W", "params/2/b"]


def test_save_replaces_and_leaves_nothing_else(tmp_path):
    for value in (1.0, 2.0):
        fnn.save(tmp_path / "params", {"W": jnp.full(2, value)})
    assert [path.name for path in tmp_path.iterdir()] == ["params"]
    assert fnn.load(tmp_path / "params", {"W": jnp.zeros(2)})["W"].tolist() == [2, 2]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(file, array):
        raise OSError("the device is full")

    path = tmp_path / "params.npz"
    fnn.save(path, {"W": jnp.ones(2)})
    before = path.read_bytes()
    monkeypatch.setattr(jnp, "save", fail)
    with pytest.raises(OSError, match="the device is full"):
        fnn.save(path, {"W": jnp.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_any_name_is_a_name_and_two_of_the_same_are_refused(tmp_path):
    tree = {"file": jnp.ones(1), "allow_pickle": jnp.ones(2), "number": 2.5}
    fnn.save(tmp_path / "tree.npz", tree)
    chex.assert_trees_all_equal(fnn.load(tmp_path / "tree.npz", tree), tree)
    with pytest.raises(ValueError, match="two leaves of the tree have the name a/b"):
        fnn.save(tmp_path / "tree.npz", {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(1)}})


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_load_refuses_a_file_that_save_did_not_write(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="file is not a file of save's"):
        fnn.load(tmp_path / "file", {"W": jnp.zeros(2)})


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"W": jnp.zeros(3)}, r"W: expected .*\(3,\).* got .*\(2,\)"),
        ({"W": jnp.zeros(2, jnp.int32)}, "W: expected .*int32.* got .*float32"),
        ({"V": jnp.zeros(2)}, "V: expected .* got nothing.*W: expected nothing"),
    ],
)
def test_load_refuses_another_tree(tmp_path, like, message):
    fnn.save(tmp_path / "params.npz", {"W": jnp.ones(2)})
    with pytest.raises(ValueError, match=message):
        fnn.load(tmp_path / "params.npz", like)


def test_save_refuses_what_npz_does_not_keep(tmp_path):
    for leaf in (jnp.ones(2, jnp.bfloat16), jax.random.key(0)):
        with pytest.raises(ValueError, match="does not keep W of dtype"):
            fnn.save(tmp_path / "params.npz", {"W": leaf})
    assert not list(tmp_path.iterdir())
