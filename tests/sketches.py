"""Pictures without drawing: most of a tiny run's time goes into laying out text, which no test but a few looks at.

A sketch holds what a figure shows (data, labels, scales, colours) where the drawn PNG holds its pixels. Runs of
fixtures of a module or a session are drawn, those in a test are sketched, unless it asks for the fixture `drawn`: one
run of every command that makes pictures is to be drawn.
"""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def sketch(figure: Any, file: IO[bytes], **options: Any) -> None:
    """In place of `Figure.savefig`."""
    found = {"size": figure.get_size_inches().tolist(), "texts": _texts(figure), "axes": list(map(_axes, figure.axes))}
    file.write(SIGNATURE + json.dumps([found, sorted(options)], default=str).encode())


def _axes(axes: Any) -> dict[str, Any]:
    frame = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()]
    limits = [*axes.get_xlim(), *axes.get_ylim()]
    ticks = [[float(at) for at in axis.get_majorticklocs()] for axis in (axes.xaxis, axes.yaxis)]
    legend = axes.get_legend()
    return {
        "frame": [*frame, limits, ticks],
        "texts": _texts(axes) + ([text.get_text() for text in legend.get_texts()] if legend else []),
        "lines": [[np.asarray(line.get_xydata()).tolist(), line.get_color(), line.get_label()] for line in axes.lines],
        "patches": [[patch.get_path().vertices.tolist(), patch.get_facecolor()] for patch in axes.patches],
        "collections": [
            [np.asarray(each.get_offsets()).tolist(), *(path.vertices.tolist() for path in each.get_paths())]
            for each in axes.collections
        ],
        "images": [np.asarray(image.get_array()).tolist() for image in axes.images],
    }


def _texts(owner: Any) -> list[str]:
    return [text.get_text() for text in owner.texts]
