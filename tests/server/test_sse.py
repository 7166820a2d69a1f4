"""What the controller learns of a stream that passes through it."""

from __future__ import annotations

import pytest

from server.sse import DONE, StreamProgress


def read(*events: bytes) -> StreamProgress:
    progress = StreamProgress()
    for event in events:
        progress.read(b"data: " + event + b"\n\n")
    return progress


def test_an_error_event_ends_the_stream_as_failed() -> None:
    progress = read(b'{"choices":[{"index":0,"delta":{"content":"a"}}]}', b'{"error":{"message":"no","code":null}}')
    assert progress.failed
    assert progress.complete


@pytest.mark.parametrize("event", [b'{"choices":[],"error":null}', b'{"choices":[]}', b"no JSON", b'{"error"'])
def test_other_events_are_no_failure(event: bytes) -> None:
    progress = read(event)
    assert not progress.failed
    assert not progress.complete


def test_a_stream_is_complete_by_its_mark_or_by_the_reasons_of_all_its_choices() -> None:
    first, second = (b'{"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}' % index for index in (0, 1))
    begun = b'{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"text":"b"}]}'
    assert read(DONE).complete
    assert not read(begun, first).complete
    assert read(begun, first, second).complete
    assert read(begun).pieces == 2
