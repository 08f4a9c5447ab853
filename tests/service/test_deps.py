"""What every route reads of a request's head."""

from service.deps import by_name, request_id_of


def test_of_two_headers_the_first_counts() -> None:
    """As servers and proxies in front have it."""
    headers = [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]

    assert by_name(headers) == {b"a": b"1", b"b": b"2"}
    assert by_name(iter(headers)) == by_name(headers)


def test_request_ids_that_are_made_differ() -> None:
    """Each of 16 hexadecimal digits."""
    made = {request_id_of(None) for _ in range(1000)}

    assert len(made) == 1000
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in made)
