"""The frame around a stream that Xen's own saver writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from snapvm.memory.streamframe import StreamFrame
from snapvm.memory.verify import verify_image
from snapvm.memory.xenimage import open_image
from tests.unit.memory.xen_builders import CONFIG, Guest


def test_a_stream_in_its_frame_is_a_whole_image(tmp_path: Path) -> None:
    guest = Guest()
    stream = b"".join([*guest.before_pages()[2:], guest.page_records(), *guest.after_pages()[:-1]])
    path = tmp_path / "memory.xl"
    frame = StreamFrame()
    os.write(frame.begin_stream(path, CONFIG), stream)
    size_bytes = frame.end_stream()
    frame.close_stream()
    frame.close_stream()
    assert path.stat().st_size == size_bytes
    assert path.stat().st_mode & 0o777 == 0o600
    with open_image(path) as image:
        assert json.loads(image.config) == json.loads(CONFIG)
    report = verify_image(path)
    assert report.pages == 590 and not report.findings


def test_what_was_not_begun_does_not_end() -> None:
    with pytest.raises(ValueError, match="not begun"):
        StreamFrame().end_stream()
