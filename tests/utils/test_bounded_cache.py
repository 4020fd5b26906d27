"""Objects used last are kept, up to a number of bytes."""

from mindllm.utils.bounded_cache import BoundedCache


def test_what_was_used_last_is_kept() -> None:
    loads: list[str] = []
    cache = BoundedCache[bytes](max_bytes=30, size_of=len)

    def get(name: str, size: int = 10) -> None:
        def load() -> bytes:
            loads.append(name)
            return bytes(size)

        assert cache.get(name, load) == bytes(size)

    for name in "abcab":
        get(name)
    assert loads == ["a", "b", "c"]
    get("d")  # drops c, which was used before the others
    get("a")
    get("c")
    assert loads == ["a", "b", "c", "d", "c"]
    get("large", 100)
    assert list(cache.content) == ["large"]
    assert cache.n_bytes == 100
