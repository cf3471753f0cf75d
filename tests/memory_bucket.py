"""A bucket whose place is taken by fsspec's file system in memory."""

from etils import epath
from fsspec.implementations.memory import MemoryFileSystem


def use_bucket(monkeypatch):
    """Every gs:// path is in memory from now on; returns the class that has what is there."""

    class Bucket(MemoryFileSystem):
        store: dict = {}
        pseudo_dirs = [""]
        cachable = False

    backend = type(epath.Path("gs://x/y")._backend)
    monkeypatch.setattr(backend, "fs", lambda self, path: Bucket())
    return Bucket
