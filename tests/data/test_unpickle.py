"""Poisoned pickles never run, old ones load, cut ones are refused."""

import builtins
import datetime
import os
import pickle

import numpy as np
import pytest

from harness.data.unpickle import UnsafePickleError, load_plain_pickle

PLAIN = [
    {
        "ref_id": 1,
        "sentences": [{"sent": "left cup", "tokens": ["left", "cup"]}],
        "f": 0.5,
        "t": (1, None, True),
    }
]


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Plain:
    pass


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_survive(tmp_path, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert load_plain_pickle(path) == PLAIN


def test_python_2_strings_are_latin1(tmp_path):
    # What Python 2 wrote for [{'sent': 'caf\xe9', u'raw': u'caf\xe9'}], protocols 0 and 2.
    old = {
        "zero.p": b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsVraw\np4\nVcaf\\u00e9\np5\nsa.",
        "two.p": b"\x80\x02]q\x00}q\x01(U\x04sentq\x02U\x04caf\xe9q\x03X\x03\x00\x00\x00rawq\x04"
        b"X\x05\x00\x00\x00caf\xc3\xa9q\x05ua.",
    }
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
        assert load_plain_pickle(tmp_path / name) == [{"sent": "café", "raw": "café"}]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", ["system", "eval", "exec", "getattr", "open"])
def test_calls_are_refused_and_never_made(tmp_path, how, protocol):
    marker = tmp_path / "executed"
    attack = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(builtins.getattr, "x", "upper"),
        "open": Call(builtins.open, str(marker), "w"),
    }[how]
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([*PLAIN, {"ref_id": attack}], protocol=protocol))
    with pytest.raises(UnsafePickleError, match=rf"refs\(unc\)\.p asks for \w+\.{how},"):
        load_plain_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (np.zeros(3), "numpy"),
        (np.int64(3), "numpy"),
        (datetime.date(2020, 1, 1), "datetime.date"),
        ({1, 2}, "set"),
        (Plain(), "copyreg|copy_reg"),
        (b"bytes", "_codecs.encode"),
    ],
)
def test_other_globals_are_named(tmp_path, value, asked):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([value], protocol=0 if isinstance(value, Plain) else 2))
    with pytest.raises(UnsafePickleError, match=asked):
        load_plain_pickle(path)


def test_persistent_objects_are_refused(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\nPsecret\na.")
    with pytest.raises(UnsafePickleError, match="secret"):
        load_plain_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_cut_is_refused(tmp_path, protocol):
    whole, path = pickle.dumps(PLAIN, protocol=protocol), tmp_path / "refs.p"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="refs.p"):
            load_plain_pickle(path)
