"""What calls with `save`, `save_txt` and `save_crop` write."""

import os
from pathlib import Path

from samjax.naming import next_folder
from samjax.ultralytics_style.arguments import Arguments
from samjax.ultralytics_style.results import Results

DEFAULT_PROJECT, DEFAULT_NAME = "runs/segment", "predict"


def default_folder() -> Path:
    """A new folder for one run's results: runs/segment/predict, predict2, and so on."""
    return next_folder(DEFAULT_PROJECT, DEFAULT_NAME)


class SavedRun:
    """The folder of one call: pictures in it, labels in `labels/`, crops in `crops/`.

    It is PROJECT/NAME, with a number at the end where there is something in it already, unless
    `exist_ok`. Pictures of the same name get a number too, so that none overwrites another of the
    same call.
    """

    def __init__(self, arguments: Arguments):
        self.arguments = arguments
        self.wanted = arguments.save or arguments.save_txt or arguments.save_crop
        project, name = arguments.project or DEFAULT_PROJECT, arguments.name or DEFAULT_NAME
        as_given = Path(project, name)
        self.folder = as_given if arguments.exist_ok else next_folder(project, name)
        self._used: set[str] = set()

    def write(self, result: Results) -> None:
        """Raises `OSError` when the disk fails."""
        if not self.wanted:
            return
        arguments = self.arguments
        result.save_dir = os.fspath(self.folder)
        stem = self._unused(result.stem)
        self.folder.mkdir(parents=True, exist_ok=True)
        if arguments.save:
            result.save(
                self.folder / f"{stem}.jpg",
                conf=arguments.show_conf,
                labels=arguments.show_labels,
                boxes=arguments.show_boxes,
                line_width=arguments.line_width,
            )
        if arguments.save_txt:
            result.save_txt(self.folder / "labels" / f"{stem}.txt", save_conf=arguments.save_conf)
        if arguments.save_crop:
            result.save_crop(self.folder / "crops", f"{stem}.jpg")

    def _unused(self, stem: str) -> str:
        number, name = 2, stem
        while name.casefold() in self._used:
            name, number = f"{stem}-{number}", number + 1
        self._used.add(name.casefold())
        return name
