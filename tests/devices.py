"""Fewer devices than the eight that tests/conftest.py makes, for code that arranges all there are."""

from contextlib import contextmanager

import jax
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import make_mesh


@contextmanager
def only_one_device():
    """Inside, JAX has one device; gives the mesh of it.

    For tests of what does not depend on the mesh: a program for eight devices takes twice as long to make.
    """
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield make_mesh(MeshConfig())
