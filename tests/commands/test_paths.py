from pathlib import Path

from commands.paths import expanded


def test_the_home_folder_is_found_and_an_unknown_one_is_a_name() -> None:
    assert expanded("~") == Path.home()
    assert expanded("~/a b") == Path.home() / "a b"
    assert expanded(Path("a/~")) == Path("a/~")
    assert expanded("~no-such-user/run") == Path("~no-such-user/run")
