"""Everything that `source` may be: local files, arrays, a web server of our own, videos."""

import http.server
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from samjax.ultralytics_style import download
from samjax.ultralytics_style.sources import list_sources


def frames(source, **options):
    return [frame for one in list_sources(source, **options) for frame in one.frames()]


def write_video(path, count=6, codec="mp4v"):
    """Frame i is grey of value 40 i."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.full((48, 64, 3), 40 * i % 256, np.uint8))
    writer.release()
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves a folder; `/short/NAME` breaks off half-way, `/slow/` says nothing."""
    folder = tmp_path_factory.mktemp("web")
    stop = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=folder, **kwargs)

        def do_GET(self):
            if self.path.startswith("/slow/"):
                stop.wait(5)
            elif self.path.startswith("/short/"):
                content = (folder / self.path.removeprefix("/short/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        stop.set()
        running.shutdown()


def test_arrays_are_bgr_and_pillow_is_rgb(write, tmp_path):
    rgb = write(tmp_path / "a.png")
    for source in (
        rgb[..., ::-1],
        Image.fromarray(rgb),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ):
        (frame,) = frames(source)
        np.testing.assert_array_equal(frame.image, rgb)
        assert frame.number is None
    assert [f.path for f in frames([rgb, rgb])] == ["image0.jpg", "image1.jpg"]


def test_tensors_are_rgb_and_channels_first(write, tmp_path):
    rgb = write(tmp_path / "a.png")
    tensor = torch.from_numpy(rgb.transpose(2, 0, 1).copy()).float() / 255
    for source in (tensor, tensor[None]):
        np.testing.assert_array_equal(frames(source)[0].image, rgb)
    assert len(frames(torch.stack([tensor, tensor]))) == 2
    with pytest.raises(ValueError, match=r"tensor of shape \(60, 90, 3\); expected \(batch, 3"):
        list_sources(torch.from_numpy(rgb))


def test_folders_and_globs(write, tmp_path):
    for name in ("b.png", "a.jpg", "sub/c.png", ".hidden.png"):
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    write_video(tmp_path / "in" / "z.mp4", 3)
    names = [frame.path.removeprefix(f"{tmp_path}/in/") for frame in frames(tmp_path / "in")]
    assert names == ["a.jpg", "b.png", "z.mp4", "z.mp4", "z.mp4"]
    assert [f.path for f in frames(f"{tmp_path}/in/*.png")] == [f"{tmp_path}/in/b.png"]
    assert len(frames(f"{tmp_path}/in/**/*.png")) == 2
    write(tmp_path / "in" / "odd[1].png")
    assert len(frames(tmp_path / "in" / "odd[1].png")) == 1


@pytest.mark.parametrize("codec, suffix", [("mp4v", "mp4"), ("MJPG", "avi")])
def test_videos(tmp_path, codec, suffix):
    path = write_video(tmp_path / f"v.{suffix}", codec=codec)
    found = frames(path)
    assert [frame.number for frame in found] == list(range(6))
    for frame in found:
        assert frame.image.shape == (48, 64, 3)
        assert abs(float(frame.image.mean()) - 40 * frame.number) < 8
    assert [frame.number for frame in frames(path, vid_stride=4)] == [0, 4]


def test_videos_that_cannot_be_read(tmp_path, caplog):
    (tmp_path / "a.mp4").write_bytes(b"not a video at all")
    with pytest.raises(ValueError, match="a.mp4 cannot be opened as a video"):
        frames(tmp_path / "a.mp4")
    whole = write_video(tmp_path / "b.avi", 30, "MJPG").read_bytes()
    (tmp_path / "b.avi").write_bytes(whole[: len(whole) // 2])
    assert 0 < len(frames(tmp_path / "b.avi")) < 30
    assert "b.avi ends after" in caplog.text and "of the 30 frames" in caplog.text


def test_urls(server, write):
    folder, address = server
    rgb = write(folder / "a.png")
    for url in (f"{address}/a.png", f"{address}/a.png?size=1&x=[2]"):
        (frame,) = frames(url)
        np.testing.assert_array_equal(frame.image, rgb)
        assert frame.path == url
    write_video(folder / "v.mp4", 3)
    assert [f.number for f in frames(f"{address}/v.mp4")] == [0, 1, 2]


def test_urls_that_are_no_picture(server, write, monkeypatch):
    folder, address = server
    (folder / "page.html").write_text("<html>hello</html>")
    (folder / "page.mp4").write_text("<html>hello</html>")
    write(folder / "a.png")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    for path, error, message in [
        ("page.html", ValueError, "page.html is not a picture that Pillow can read"),
        ("page.mp4", ValueError, "page.mp4 cannot be opened as a video"),
        ("absent.png", OSError, "absent.png cannot be had: the server says 404"),
        ("short/a.png", OSError, r"short/a.png broke off with \d+ bytes to come"),
        ("short/page.mp4", OSError, r"short/page.mp4 broke off with \d+ bytes to come"),
        ("slow/a.png", OSError, "slow/a.png cannot be had: .*timed out"),
    ]:
        with pytest.raises(error, match=message):
            frames(f"{address}/{path}")
    with pytest.raises(OSError, match="http://127.0.0.1:1/a.png cannot be had: .*refused"):
        frames("http://127.0.0.1:1/a.png")
    monkeypatch.setattr(download, "MAX_PICTURE_BYTES", 100)
    with pytest.raises(ValueError, match="holds more than 100 bytes"):
        frames(f"{address}/a.png")


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("absent.jpg", FileNotFoundError, "no such file or folder: absent.jpg"),
        ("empty", FileNotFoundError, "no pictures or videos in empty"),
        ("texts", FileNotFoundError, "no pictures or videos in texts; of 1 entries none is one"),
        ("*.jpg", FileNotFoundError, r"no picture or video matches \*\.jpg"),
        ("texts/*", FileNotFoundError, r"matches texts/\*; of 1 entries none is one"),
        ([], ValueError, "source is an empty list"),
        ([["a.jpg"]], TypeError, "entry 0 of source is a list"),
        (["absent.jpg"], FileNotFoundError, "no such file or folder: absent.jpg"),
        ("0", ValueError, "cameras"),
        (0, ValueError, "source is 0, a camera"),
        ("screen", ValueError, "screens, cameras and network streams"),
        ("rtsp://example/1", ValueError, "network streams"),
        ({"a": 1}, TypeError, "source is of type dict; it can be a picture or video file"),
        (None, TypeError, "source is of type NoneType"),
    ],
)
def test_sources_that_are_refused(tmp_path, monkeypatch, source, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/notes.txt").write_text("no picture")
    with pytest.raises(error, match=message):
        list_sources(source)


def test_an_entry_that_is_not_there_raises_when_it_is_read(write, tmp_path):
    write(tmp_path / "a.png")
    sources = list_sources([tmp_path / "a.png", "absent.jpg", {"a": 1}, tmp_path / "a.png"])
    assert [source.name for source in sources[1:3]] == ["absent.jpg", "entry 2 of source"]
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        sources[1].frames()
    assert len(list(sources[3].frames())) == 1
