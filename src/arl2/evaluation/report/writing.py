"""Results into a folder: ``results.json``, ``report.html``, ``report.md``."""

import json
from pathlib import Path

from arl2.errors import ConfigError
from arl2.evaluation.report.page import html_page
from arl2.evaluation.report.table import markdown
from arl2.evaluation.suites.evaluate import PAGE, RESULTS, TABLE
from arl2.evaluation.suites.summary import Results
from arl2.files.atomic import write_atomically


def write_results(results: Results, folder: Path) -> None:
    """Write all three, each whole or not at all.

    Raises:
        ConfigError: the system refuses.
    """
    contents = {
        RESULTS: json.dumps(results.to_mapping(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        TABLE: markdown(results),
        PAGE: html_page(results),
    }
    for name, content in contents.items():
        try:
            write_atomically(folder / name, content.encode())
        except OSError as error:
            raise ConfigError(f"'{folder / name}' cannot be written ({error.strerror}); make room.") from error
