"""The table of errors is what clients match on."""

from kvorum import errors
from kvorum.errors import ApiError, Code, Status

TABLE = {name: value for name, value in vars(errors).items() if isinstance(value, Status)}


def test_every_message_names_the_server_and_stands_once() -> None:
    messages = [status.message for status in TABLE.values()]
    assert all(message.startswith("etcdserver: ") for message in messages)
    assert len(set(messages)) == len(messages) == 64


def test_an_api_error_carries_its_status() -> None:
    error = ApiError(errors.EMPTY_KEY)
    assert error.status == (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
    assert str(error) == "etcdserver: key is not provided"
