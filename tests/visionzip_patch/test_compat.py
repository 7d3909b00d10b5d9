import pytest

from visionzip_patch.compat import CACHE, CACHES, cache_in, with_one_cache


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_found_under_either_name_and_goes_by_that_of_this_version(name):
    other = next(each for each in CACHES if each != name)
    for given in ({name: "kept"}, {name: "kept", other: None}):
        assert cache_in(given) == "kept"
        assert with_one_cache({**given, "use_cache": True}) == {CACHE: "kept", "use_cache": True}


def test_no_cache_has_no_name():
    for given in ({}, dict.fromkeys(CACHES)):
        assert cache_in(given) is None
        assert with_one_cache({**given, "use_cache": True}) == {"use_cache": True}
