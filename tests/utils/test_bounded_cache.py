"""Objects used last are kept, up to a number of them or of bytes."""

from threading import Barrier, Thread

from mindllm.utils.bounded_cache import BoundedCache


def test_what_was_used_last_is_kept() -> None:
    loads: list[str] = []
    cache = BoundedCache[str, bytes](30, size_of=len)

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
    assert cache.keys() == ["large"]
    assert cache.size == 100
    cache.remove(lambda key: key == "large")
    assert (len(cache), cache.size) == (0, 0)


def test_an_object_says_whether_it_was_held() -> None:
    cache = BoundedCache[int, str](1)
    assert cache.look_up(1, lambda: "one") == ("one", False)
    assert cache.look_up(1, lambda: "two") == ("one", True)


def test_two_threads_that_make_the_same_object_leave_it_once() -> None:
    cache, barrier = BoundedCache[str, bytes](30, size_of=len), Barrier(2)

    def make() -> bytes:
        barrier.wait(timeout=10)  # both threads are here: neither waits for the other's lock
        return bytes(20)

    threads = [Thread(target=cache.get, args=("a", make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.keys(), cache.size) == (["a"], 20)
