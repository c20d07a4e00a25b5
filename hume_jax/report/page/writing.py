"""The page at the end of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax.errors import LostProcess, Preempted
from hume_jax.report.page import folder as run_folder
from hume_jax.report.page import gather, html, inlined
from hume_jax.workdir import Workdir, plain


def redraw(opened: run_folder.Opened, given: Mapping[str, str] | None = None) -> str:
    """Writes report.html of a finished run anew, and returns where it is.

    Args:
      opened: the run.
      given: what the rows of a split are, in the place of what the run's config says.

    Raises:
      UserError: what is given cannot be read.
    """
    samples = inlined.collect(opened.run, opened.path, given)
    opened.write(run_folder.PAGE, html.page(opened.run, samples))
    return f"{opened.run.place}/{run_folder.PAGE}"


def write(
    folder: Workdir,
    config: config_dict.ConfigDict,
    results: Mapping[str, Any],
    parts: Mapping[str, gather.Part],
    scores: Mapping[str, np.ndarray],
) -> None:
    """Writes report.npz and report.html, before results.json marks the run as finished.

    Whatever goes wrong with the page is logged and costs no more than the page: what a search of
    hours has found is worth more.

    Args:
      folder: of the run.
      config: resolved.
      results: what will be results.json.
      parts: of each split.
      scores: of the tasks, with their `agreement_matrix`.
    """
    try:
        searched = ["train", "test"] if config.setting == "transductive" else ["train"]
        kept = gather.gather(parts, searched, config.n_classes, scores["agreement_matrix"])
        folder.write_npz(run_folder.ARRAYS, kept)
        run = run_folder.Run(
            str(folder.place),
            config.to_dict(),
            plain(results),
            folder.metrics(),
            kept,
            *run_folder.edits_of(folder.path, config.n_classes),
        )
        samples = inlined.collect(run, folder.path)
        folder.write_text(run_folder.PAGE, html.page(run, samples))
    except (Preempted, LostProcess):
        raise
    except Exception:  # noqa: BLE001, see above
        logging.exception(
            "report.html could not be drawn, the results are not touched by it; `python -m "
            "hume_jax.report --run=%s` tries again",
            folder.place,
        )
